"""Means over the clients that held a weight, where they train models of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch

from fedprune.learning.averaging import from_moments, to_moments
from fedprune.methods.apart import tier_of
from fedprune.methods.global_mask import sparsity_of
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

    What none of them held stays as it was, and so does the global model's mask. In float64;
    BatchNorm's variances as second moments. All that was `sent` has changes.
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
    means = {n: torch.where(h > 0, sums[n] / h.clamp_min(1e-300), old[n]) for n, h in held.items()}
    lr = change_rate(r.config)
    rates = dict.fromkeys(layout.statistics, min(lr, 1.0))
    after = {n: w + rates.get(n, lr) * (means[n] - w) for n, w in old.items()}
    weights = {n: w.float() for n, w in from_moments(after, layout, model.weights).items()}
    return replace(model, weights=masked(weights, model.masks))


def trained_apart(model: Model, r: Round, parts: Sequence[tuple[Model, Ask]]) -> Talk[Trained]:
    """Clients train models of their own, all in one exchange; each weight's mean is over holders.

    The global model's mask stays; `parts` are what some clients are sent, and the question to
    train it.
    """
    sums = yield [ask for _, ask in parts]
    came = [Sent(m, s) for (m, _), s in zip(parts, sums, strict=True) if s.total is not None]
    changes = answered_by_all(sums)
    void = not came or too_few(changes, r.config)
    return Trained(None if void else over_holders(model, r, came), changes)


def each_trained(model: Model, r: Round, those: Mapping[int, Model]) -> Talk[Trained]:
    """The same, where every client is sent a model of its own."""
    return (
        yield from trained_apart(model, r, [(m, tuning_ask(m, r, [p])) for p, m in those.items()])
    )


def own_sparsity_of(
    own: Callable[[Model, Any, int], Model], model: Model, memory: Any, r: Round
) -> dict[str, float]:
    """The mean sparsity of the cohort's own models, for the round's row."""
    return {
        "own_sparsity": mean(sparsity_of(own(model, memory, p).masks, r.layout) for p in r.cohort)
    }


def part_of_client(
    model: Model, parts: Sequence[Masks], whose: Sequence[int], partition: int
) -> Model:
    """What a client has of the model: of the masks that of its device, or the one in turn."""
    part = parts[tier_of(whose, partition, len(parts))]
    return model.under({n: m & part[n] for n, m in model.masks.items()})


def by_tier(r: Round, whose: Sequence[int], many: int) -> dict[int, list[int]]:
    """The cohort by which of so many parts its clients have; without parts that none has."""
    tiers = {i: [p for p in r.cohort if tier_of(whose, p, many) == i] for i in range(many)}
    return {i: those for i, those in tiers.items() if those}


def trained_by_part(
    model: Model, r: Round, parts: Sequence[Masks], whose: Sequence[int]
) -> Talk[Trained]:
    """Every client trains its part, all in one exchange; each weight's mean is over its holders."""
    tiers = by_tier(r, whose, len(parts)).values()
    sent = [(part_of_client(model, parts, whose, those[0]), those) for those in tiers]
    return (yield from trained_apart(model, r, [(m, tuning_ask(m, r, who)) for m, who in sent]))
