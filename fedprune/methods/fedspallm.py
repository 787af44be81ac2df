"""FedSpaLLM: clients prune some layers by themselves; means over holders, masks grown by votes.

Bai et al. 2025 (NAACL), arXiv 2410.14852. Client k is given some of the blocks (``layers``, a part
of them: that at k modulo how many there are, or with ``--budget flops|bytes`` its device's; drawn
anew for every client and pruning) and prunes these by its own data to the sparsity, block by block
behind what it pruned; of the others it keeps what it had. Then, eqs. 5 to 7,

    W_j = Σ_k m_kj W_kj / Σ_k m_kj              (the l0 mean: over the clients that kept weight j)
    removed: what all clients that pruned the layer removed, and then what most of them did, until
    s·d of the layer's d weights are gone.

Where it departs from the paper, whose code is an empty repository and whose tables were not read:
clients prune by ``--score`` (Wanda) and not by SparseGPT, so that pruning by itself moves no weight
and what W_k differ in is what clients then train under their masks, each client alike
(``--weighting equal``); with ``--local-steps 0`` they do not, and only masks travel up. Every block
is given to somebody: one that no draw gave goes to a client drawn for it; s·d is rounded so that
the model's number is exact (a reimplementation that cites the equations rounds it up). Ties among
votes go by magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fedprune.config import RunConfig
from fedprune.methods.apart import part_conflicts, tier_of
from fedprune.methods.holders import each_trained
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.scored import best
from fedprune.methods.tuning import TOO_FEW, tuned
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.port import Ask
from fedprune.randomness import generator
from fedprune.scores.catalog import scores_of
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.structure.groups import stages_of
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, scattered

Stages = tuple[tuple[str, ...], ...]


class Options(Section):
    """What ``--method-options`` takes."""

    layers: tuple[float, ...] = option(
        "method", "parts of the blocks that clients prune, from above 0 to 1", (1.0,)
    )


@dataclass(frozen=True)
class Memory:
    """The clients' own masks in the round in which they prune, of the tensors they pruned."""

    masks: dict[int, Masks] = field(default_factory=dict)


def blocks_given(clients: Sequence[int], blocks: Stages, r: Round) -> Mapping[int, Stages]:
    """The blocks that each client prunes: drawn, and none that nobody has."""
    layers = r.options.layers
    given: dict[int, list[int]] = {}
    for p in clients:
        many = max(1, round(layers[tier_of(r.plan.tiers, p, len(layers))] * len(blocks)))
        gen = generator(r.config.seed, "blocks", r.number, p)
        given[p] = torch.randperm(len(blocks), generator=gen)[:many].tolist()
    gen = generator(r.config.seed, "blocks", r.number)
    for i in set(range(len(blocks))).difference(*given.values()):
        given[clients[int(torch.randint(len(clients), (1,), generator=gen))]].append(i)
    return {p: tuple(blocks[i] for i in sorted(those)) for p, those in given.items()}


def _asked(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The clients' own masks of the blocks that they were given."""
    who = sorted(r.scored)
    given = blocks_given(who, tuple(stages_of(r.layout)), r)
    names = {p: tuple(n for block in given[p] for n in block) for p in who}
    about = {"score": r.config.score, "sparsity": r.plan.sparsity(r.number)}
    about["progress"] = r.plan.progress(r.number)
    sums = yield [Ask(r.question(model, "own", names=names[p], **about), [p]) for p in who]
    masks = {}
    for p, s in zip(who, sums, strict=True):
        if s.votes is not None:
            here = {n: model.masks[n] for n in names[p]}
            masks[p] = scattered(s.votes > 0, shapes_of(here), here)
    if len(masks) < r.config.min_clients:
        return Step(model, memory, undone=TOO_FEW)
    return Step(model, Memory(masks))


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """The l0 mean, where clients have masks of their own; else the usual one."""
    if not memory.masks:
        return (yield from tuned()(model, memory, r))
    those = {p: model.under({**model.masks, **memory.masks.get(p, {})}) for p in r.cohort}
    return (yield from each_trained(model, r, those))


def _expanded(model: Model, memory: Memory, r: Round, _: Aggregate) -> Talk[Step]:
    """The global mask: of what was pruned by all that pruned the layer, and on by most votes."""
    yield from ()
    if not memory.masks:
        return Step(model, memory)
    kept = {}
    for n, mask in model.masks.items():
        own = [m[n].double() for m in memory.masks.values() if n in m]
        kept[n] = torch.stack(own).mean(0) if own else mask.double()
    masks = best(kept, r.plan.sparsity(r.number), model, r)
    many = sum(len(m) for m in memory.masks.values()) / len(memory.masks) / len(model.masks)
    return Step(model.under(masks), Memory(), Notes(method={"layers_pruned": many}))


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    c, own = config, "clients prune and train under masks of their own"
    sets = scores_of(c.plugin)[c.score].step is not None
    return [
        *part_conflicts(options.layers, "layers are parts of the blocks"),
        ("budget", c.budget == "memory", "clients hold the whole model", "none, flops, bytes"),
        ("score", sets, "it sets weights", "a score that only ranks"),
        ("sparsity", c.sparsity is None, "every client prunes to one", "a number"),
        ("schedule", c.schedule == "regrow", "masks only shrink", "one-shot, cubic"),
        ("calibration", c.calibration == "sequential", own, "local, dense"),
        ("score-steps", c.score_steps != 1, own, "1"),
        ("robust", c.robust != "none", own, "none"),
        ("average", c.average != "l0-mean", "it has the l0 mean", "l0-mean"),
        ("error-feedback", c.error_feedback, own, "false"),
        ("scaffold", c.scaffold, own, "false"),
        ("blend", c.blend != "none", own, "none"),
        ("rewind", c.rewind is not None, own, "leave it out"),
        ("reconstruct", c.reconstruct is not None, own, "leave it out"),
        ("reduce", bool(c.reduce), own, "leave it out"),
        ("shrink", c.shrink == "every", "masks change after training", "never, end"),
    ]


METHOD = Method(
    "clients prune some blocks each; means over those that kept a weight; majority masks",
    "FedSpaLLM, Bai et al. 2025, arXiv 2410.14852; Wanda on the clients in place of SparseGPT",
    tune=_trained,
    before=_asked,
    after=_expanded,
    memory=Memory,
    options=Options,
    apart=True,
    parts=lambda options: options.layers,
    whole=True,
    conflicts=_conflicts,
    sets={"masks": "intersection"},
    usual={
        **{"score": "wanda", "calibration": "local", "scope": "layer", "weighting": "equal"},
        **{"schedule": "one-shot", "sparsity": 0.5},
    },
    untrained=True,
)
