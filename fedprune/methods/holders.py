"""Means over the clients that held a weight, where they train models of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedprune.learning.averaging import from_moments, to_moments
from fedprune.methods.apart import tier_of
from fedprune.methods.method import Trained
from fedprune.methods.tuning import answered_by_all, change_rate, tuning_ask
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.port import Ask
from fedprune.server.round import Round, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, Tensors, masked, scattered


@dataclass(frozen=True)
class Sent:
    """What some clients trained, and what came of it.

    Attributes:
        model: that they were sent, in the layout of the global one.
        changes: their sum, on that model's mask or, where they exchanged weights, on their own.
        whole: where clients have masks of their own, their changes lie on all weights; else on
            what that model's mask keeps.
    """

    model: Model
    changes: Aggregate
    whole: bool = True

    @property
    def changed_on(self) -> Masks:
        """The masks that the changes lie on: none, where they exchanged weights."""
        return {} if self.changes.held is not None and self.whole else self.model.masks

    @property
    def holders(self) -> Tensors:
        """Of every prunable weight Σ n_k over the clients that held it, float64."""
        masks, held = self.model.masks, self.changes.held
        if held is None:
            return {n: self.changes.weight * m.double() for n, m in masks.items()}
        return scattered(held, shapes_of(masks), self.changed_on)


def over_holders(model: Model, r: Round, sent: Sequence[Sent]) -> Model:
    """The model whose weights are means over the clients that held them: Σ n_k m_k w_k / Σ n_k m_k.

    What none of them held stays as it was. In float64; BatchNorm's variances as second moments.

    Args:
        model: the global one; its mask stays.
        r: the round.
        sent: what the clients were sent, with their changes, all of which came.
    """
    layout = r.layout
    old = to_moments({n: w.double() for n, w in model.weights.items()}, layout)
    sums = {n: torch.zeros_like(w) for n, w in old.items()}
    held = {n: torch.zeros_like(w) for n, w in old.items()}
    for each in sent:
        weight, total = each.changes.weight, each.changes.total
        assert total is not None  # else it is left out
        start = to_moments({n: w.double() for n, w in each.model.weights.items()}, layout)
        moved = scattered(total, layout.shapes, each.changed_on)
        holders = each.holders
        for n, w in start.items():
            m = holders[n] if n in holders else torch.full_like(w, weight)
            sums[n] += m * w + moved[n]
            held[n] += m
    mean = {n: torch.where(h > 0, sums[n] / h.clamp_min(1e-300), old[n]) for n, h in held.items()}
    lr = change_rate(r.config)
    rates = dict.fromkeys(layout.statistics, min(lr, 1.0))
    after = {n: w + rates.get(n, lr) * (mean[n] - w) for n, w in old.items()}
    weights = {n: w.float() for n, w in from_moments(after, layout, model.weights).items()}
    return replace(model, weights=masked(weights, model.masks))


def trained_apart(model: Model, r: Round, parts: Sequence[tuple[Model, Ask]]) -> Talk[Trained]:
    """Clients train models of their own, all in one exchange; each weight's mean is over holders.

    Args:
        model: the global one; its mask stays.
        r: the round.
        parts: what some clients are sent, and the question to train it.
    """
    sums = yield [ask for _, ask in parts]
    came = [Sent(m, s) for (m, _), s in zip(parts, sums, strict=True) if s.total is not None]
    changes = answered_by_all(sums)
    void = not came or too_few(changes, r.config)
    return Trained(None if void else over_holders(model, r, came), changes)


def part_of_client(
    model: Model, parts: Sequence[Masks], whose: Sequence[int], partition: int
) -> Model:
    """What a client has of the model: the part of its device, or the one in turn.

    Args:
        model: the whole.
        parts: masks of the parts.
        whose: as `fedprune.methods.apart.tier_of` takes it.
        partition: the client.
    """
    part = parts[tier_of(whose, partition, len(parts))]
    return model.under({n: m & part[n] for n, m in model.masks.items()})


def trained_by_part(
    model: Model, r: Round, parts: Sequence[Masks], whose: Sequence[int]
) -> Talk[Trained]:
    """Every client trains its part, all in one exchange; each weight's mean is over its holders."""
    many = range(len(parts))
    tiers = [[p for p in r.cohort if tier_of(whose, p, len(parts)) == tier] for tier in many]
    sent = [(part_of_client(model, parts, whose, those[0]), those) for those in tiers if those]
    return (yield from trained_apart(model, r, [(m, tuning_ask(m, r, who)) for m, who in sent]))
