"""DisPFL: no server; every client has its own model and mask, and averages with neighbours.

Dai et al. 2022, arXiv 2206.00187, algorithm 1, and its code (rong-dai/DisPFL). All begin with the
same weights under a random mask, at layer densities by ``--scope`` (Erdős-Rényi-Kernel). In a round
every client k that takes part receives its neighbours' models of before the round, and begins with

    w_k = m_k · Σ_j m_j w_j / Σ_j m_j   over its neighbours and itself.

It trains under m_k; then of every layer the part alpha_t of its weights with the smallest |w| go
and as many of the removed ones with the largest |gradient| come, from 0. alpha_t falls with the
cosine of the round, from ``exchange`` to 0.

**There is no server in the paper. Here the server stands for the network**: it holds everybody's
model, gives each client its neighbours' mean and takes back what the client makes of it. Bytes are
those of this: a model down and one up for each client and round. In the network a client receives
one model from every neighbour; how many travel is in the rows (``peer_models``). What is measured
as the model is the mean over holders of the models of all clients that took part so far, without a
mask; each client's own is measured on its test part.

Where it departs from the paper and its code: neighbours are drawn among the round's cohort; a
client sends what it keeps under its new mask (the code sends what it trained, with the mask
before); gradients are of the whole shard in place of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from fedprune.config import RunConfig
from fedprune.learning.averaging import from_moments, to_moments
from fedprune.methods.apart import asked_alone, not_read, tier_of
from fedprune.methods.growing import (
    exchanging_ask,
    exchanging_conflicts,
    over_exchanged,
    random_masks,
)
from fedprune.methods.holders import Sent, own_sparsity_of
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.tuning import answered_by_all
from fedprune.options.option import Count, option
from fedprune.options.section import Section
from fedprune.randomness import generator
from fedprune.selection.schedules import exchange_fraction
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks, Tensors


class Options(Section):
    """What ``--method-options`` takes."""

    exchange: float = option("method", "part of its weights exchanged at first", 0.5, ge=0, le=1)
    network: Literal["random", "ring", "full"] = option("method", "who are neighbours", "random")
    neighbours: Count = option("method", "how many neighbours a random network gives", 10)
    tiers: tuple[float, ...] = option(
        "method", "densities by partition mod their number (none: 1 - sparsity)", ()
    )


@dataclass(frozen=True)
class Memory:
    """The masks that clients begin with, by tier, and the models of those who took part.

    And the tier of every client, where its device decides that.
    """

    starts: tuple[Masks, ...]
    begin: Tensors
    weights: dict[int, Tensors] = field(default_factory=dict)
    masks: dict[int, Masks] = field(default_factory=dict)
    whose: tuple[int, ...] = ()


def _init(model: Model, r: Round) -> Memory:
    densities = r.options.tiers or (1.0 - (r.config.sparsity or 0.0),)
    starts = tuple(random_masks(model, r, 1.0 - d, i) for i, d in enumerate(densities))
    return Memory(starts, model.weights, whose=r.plan.tiers)


def _own(model: Model, memory: Memory, partition: int) -> Model:
    start = memory.starts[tier_of(memory.whose, partition, len(memory.starts))]
    weights = memory.weights.get(partition, memory.begin)
    return replace(model, weights=weights).under(memory.masks.get(partition, start))


def listened_to(partition: int, r: Round) -> list[int]:
    """Whose models a client averages in a round, its own included."""
    others = sorted(p for p in r.cohort if p != partition)
    ring = sorted(r.cohort)
    at, o = ring.index(partition), r.options
    if o.network == "ring":
        others = [ring[at - 1], ring[(at + 1) % len(ring)]]
    elif o.network == "random":
        gen = generator(r.config.seed, "neighbours", r.number, partition)
        drawn = torch.randperm(len(others), generator=gen)[: o.neighbours].tolist()
        others = [others[i] for i in drawn]
    return sorted({partition, *others})


def mean_of(models: Sequence[Model], layout: Layout) -> Tensors:
    """Every weight's mean over those of the models that keep it; 0.0 where none does."""
    whole = [to_moments({n: w.double() for n, w in m.weights.items()}, layout) for m in models]
    out = {}
    for n in whole[0]:
        masks = [m.masks.get(n, torch.ones(whole[0][n].shape)) for m in models]
        held = torch.stack([m.double() for m in masks]).sum(0)
        sums = torch.stack([m * t[n] for m, t in zip(masks, whole, strict=True)]).sum(0)
        out[n] = torch.where(held > 0, sums / held.clamp_min(1.0), 0.0)
    return {n: w.float() for n, w in from_moments(out, layout).items()}


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """Every client trains from its neighbours' mean, all in one exchange."""
    c = r.config
    part = exchange_fraction(r.options.exchange, r.number - 1, c.rounds)
    sent = {}
    for p in r.cohort:
        near = [_own(model, memory, q) for q in listened_to(p, r)]
        own = _own(model, memory, p)
        sent[p] = replace(own, weights=mean_of(near, r.layout)).under(own.masks)
    sums = yield [exchanging_ask(m, r, [p], exchange=part) for p, m in sent.items()]
    came = {p: Sent(m, s) for (p, m), s in zip(sent.items(), sums, strict=True) if s.answered}
    changes = answered_by_all(sums)
    if not came or too_few(changes, c):
        return Trained(None, changes)
    after = {p: over_exchanged(each.model, r, [each]) for p, each in came.items()}
    memory = replace(
        memory,
        weights={**memory.weights, **{p: m.weights for p, m in after.items()}},
        masks={**memory.masks, **{p: m.masks for p, m in after.items()}},
    )
    everybody = [_own(model, memory, p) for p in memory.weights]
    return Trained(replace(model, weights=mean_of(everybody, r.layout)), changes, memory)


def _settled(model: Model, memory: Memory, r: Round, _: Any) -> Talk[Step]:
    """How sparse the clients' own models are, and how many a network would have sent."""
    yield from ()
    peers = sum(len(listened_to(p, r)) - 1 for p in r.cohort)
    told = {**own_sparsity_of(_own, model, memory, r), "peer_models": peers}
    return Step(model, memory, Notes(method=told))


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    c, tiers = config, options.tiers
    wrong = bool(tiers) and not all(0 < d <= 1 for d in tiers)
    idle = "neighbours" in c.method_options and options.network != "random"
    twice = bool(tiers) and "sparsity" in c.given
    return [
        ("sparsity", twice, "tiers say how dense clients are", "leave it out, or tiers"),
        ("method-options", wrong, "tiers are densities", "above 0 to 1"),
        ("method-options", idle, "only network random reads neighbours", "leave neighbours out"),
        *not_read(c, ("weighting",), "a mean of neighbours counts them alike"),
        asked_alone(c),
        ("shrink", c.shrink != "never", "the global model has no mask", "never"),
        ("server-optimizer", c.server_optimizer != "sgd", "there is no server", "sgd"),
        ("server-lr", c.server_lr != 1.0, "there is no server", "1.0"),
        ("moving", c.moving != "none", "no client trains the mean of all models", "none"),
        *exchanging_conflicts(c),
    ]


METHOD = Method(
    "every client has a model and a mask of its own, and begins from its neighbours' mean",
    "DisPFL, Dai et al. 2022, arXiv 2206.00187; peer to peer in the paper, by the server here: "
    "bytes are those of a model down and one up",
    tune=_trained,
    after=_settled,
    memory=Memory,
    init=_init,
    options=Options,
    own=_own,
    scores=False,
    apart=True,
    planned=True,
    parts=lambda options: options.tiers,
    conflicts=_conflicts,
    sets={"schedule": "one-shot", "score": "magnitude", "warmup": 0},
    usual={"scope": "erk"},
)
