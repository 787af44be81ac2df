"""FLASH: clients say how dense each layer should be; then all train under masks of those densities.

Babakniya et al. 2023 (TMLR), arXiv 2208.13092, and its code (SaraBabakN/flash_fl). Stage one: the
round's clients begin with one random mask of the same density in every layer, train, and exchange
weights halfway: of every layer the smallest go, and as many in all grow at random, in each layer in
proportion to the mean size of its weights. The server averages the density that each layer has
with them, d_l = mean_k |m_kl| / n_l, and scales these to the density that is wanted.

``spdst`` (sparse training with pre-defined masks by sensitivity): from then on all train the first
weights under one fixed random mask of these densities. ``jmwst`` (joint mask and weight training):
in every pruning round after it the clients exchange again; the server takes the mean over those
who kept a weight, and its mask keeps of every layer the largest |w|, as many as the clients kept of
it on average, scaled.

``tiers`` (hetero-FLASH): partition p has density tiers[p mod their number] of the model's: of every
layer the largest |w| of the server's mask. Each weight is averaged over its holders.

Where it departs from the paper's code: numbers of weights are exact (there a mask has its density
in expectation, and growth misses by chance); clients exchange once in stage one, after half of
their steps, by a fraction that is ``--regrow``; in stage one a client's answer has its weights too,
which are not used (the code sends masks alone); the optimizer begins anew after an exchange;
``spdst`` changes no mask after stage one, whatever ``--end`` is, and refuses ``--frequency``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedprune.config import RunConfig
from fedprune.methods.apart import not_read, part_conflicts, tier_of
from fedprune.methods.growing import (
    all_kept,
    exchanging_ask,
    exchanging_conflicts,
    fraction_in,
    holders,
    kept_in_all,
    over_exchanged,
    random_masks,
)
from fedprune.methods.holders import Sent, by_tier, over_holders
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.tuning import TOO_FEW, answered_by_all, tuning_ask
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.randomness import generator
from fedprune.selection.regrowth import in_proportion, largest_of_each
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.tensors.named import Masks, count_kept


class Options(Section):
    """What ``--method-options`` takes."""

    stage: Literal["spdst", "jmwst"] = option("method", "what follows the first stage", "spdst")
    tiers: tuple[float, ...] = option(
        "method", "densities of clients' parts of the model, from above 0 to 1", (1.0,)
    )


@dataclass(frozen=True)
class Memory:
    """The densities of the clients' parts, and whose device has which."""

    tiers: tuple[float, ...]
    whose: tuple[int, ...] = ()


def _own(model: Model, memory: Memory, partition: int) -> Model:
    """A client's part: of every layer the largest weights of the model's mask, one at least."""
    density = memory.tiers[tier_of(memory.whose, partition, len(memory.tiers))]
    if density == 1.0:
        return model
    sizes = {n: model.weights[n].abs() for n in model.masks}
    kept = [int(m.sum()) for m in model.masks.values()]
    counts = [min(k, max(1, round(density * k))) for k in kept]
    return model.under(largest_of_each(sizes, counts, model.masks))


def kept_with_clients(sent: Sequence[Sent], total: int, rooms: Masks) -> list[int]:
    """How many weights of each tensor are kept: in proportion to what clients kept of it."""
    votes = [holders(each.model, each.changes) for each in sent]
    kept = [float(sum(v[n].sum() for v in votes)) for n in rooms]
    return in_proportion(total, kept, [int(m.sum()) for m in rooms.values()])


def _first(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """Stage one: a random mask of the densities that the clients arrive at."""
    if r.prunings:
        return Step(model, memory)
    start = model.under(random_masks(model, r, r.config.sparsity or 0.0))
    how = {"grow": "random", "exchange": r.config.regrow, "turn": 0.5}
    (changes,) = yield [exchanging_ask(start, r, r.cohort, **how)]
    if changes.total is None or too_few(changes, r.config):
        return Step(model, memory, undone=TOO_FEW)
    whole = all_kept(model)
    counts = kept_with_clients([Sent(start, changes)], kept_in_all(r), whole)
    gen = generator(r.config.seed, "random masks", 1)
    drawn = {n: torch.rand(m.shape, generator=gen) for n, m in whole.items()}
    part = {n: c / whole[n].numel() for n, c in zip(whole, counts, strict=True)}
    masks = largest_of_each(drawn, counts, whole)
    return Step(model.under(masks), memory, Notes(method={"density": part}))


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """Every tier trains its part; where clients exchange weights, the mask is decided anew."""
    fraction = fraction_in(r) if r.options.stage == "jmwst" else 0.0
    tiers = list(by_tier(r, memory.whose, len(memory.tiers)).values())
    parts = [_own(model, memory, those[0]) for those in tiers]
    how = {"grow": "random", "exchange": fraction, "turn": 0.5} if fraction else {}
    sums = yield [tuning_ask(m, r, those, **how) for m, those in zip(parts, tiers, strict=True)]
    sent = [Sent(m, s) for m, s in zip(parts, sums, strict=True) if s.total is not None]
    changes = answered_by_all(sums)
    if not sent or too_few(changes, r.config):
        return Trained(None, changes)
    if not fraction:
        return Trained(over_holders(model, r, sent), changes)
    model = over_exchanged(model, r, sent)
    sizes = {name: model.weights[name].abs() for name in model.masks}
    counts = kept_with_clients(sent, min(kept_in_all(r), count_kept(model.masks)), model.masks)
    return Trained(model.under(largest_of_each(sizes, counts, model.masks)), changes)


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    once = ("frequency",) if options.stage == "spdst" else ()
    return [
        *part_conflicts(options.tiers, "tiers are densities"),
        *not_read(config, once, "stage spdst prunes once"),
        *exchanging_conflicts(config),
    ]


METHOD = Method(
    "clients find how dense each layer should be; then one mask of these densities, fixed or moved",
    "FLASH, Babakniya et al. 2023, arXiv 2208.13092: spdst, jmwst and tiers (hetero); numbers of "
    "weights are exact",
    tune=_trained,
    before=_first,
    memory=Memory,
    init=lambda _, r: Memory(r.options.tiers, r.plan.tiers),
    options=Options,
    own=_own,
    scores=False,
    apart=True,
    parts=lambda options: options.tiers,
    conflicts=_conflicts,
    sets={"schedule": "regrow", "score": "magnitude"},
    usual={"scope": "layer", "warmup": 0, "weighting": "equal"},
)
