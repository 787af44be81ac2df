"""FedPaI: every client prunes at initialisation, by a score of its own data, once and for all.

Wang et al. 2025, arXiv 2504.00308. Before the first step every client scores the weights that all
begin with on its own examples (GraSP in the paper; SNIP and SynFlow go too) and keeps its best: its
mask m_k, which stays. Rounds train w under the clients' own masks, and the server averages what is
there,

    w = Σ_k n_k m_k w_k / Σ_k n_k m_k

(sparsity-aware aggregation). With ``masks server`` there is one mask, of the clients' summed
scores, for any ``--unit``: the paper's structured form, which a server decides.

**The paper's text could not be read**, only its abstract and summaries of it; which form its
aggregation has exactly is taken from these. Here masks are asked for once, of everybody who can be
asked in the first round; a client without an answer there keeps the whole model. What is measured
as the model is the mean, without a mask; each client's own is measured on its test part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fedprune.config import RunConfig
from fedprune.methods.apart import apart_conflicts, asked_alone, not_read
from fedprune.methods.global_mask import thin
from fedprune.methods.holders import each_trained, own_sparsity_of
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.tuning import TOO_FEW, tuned
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.protocol.port import Ask
from fedprune.scores.catalog import scores_of
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, scattered


class Options(Section):
    """What ``--method-options`` takes."""

    masks: Literal["clients", "server"] = option("method", "whose masks", "clients")


@dataclass(frozen=True)
class Memory:
    """The clients' masks; none where there is one for all."""

    masks: dict[int, Masks] = field(default_factory=dict)


def _own(model: Model, memory: Memory, partition: int) -> Model:
    return model.under(memory.masks.get(partition, model.masks))


def _pruned(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The clients' own masks, or one for all."""
    if r.options.masks == "server":
        return (yield from thin(model, memory, r))
    about = {"score": r.config.score, "sparsity": r.plan.sparsity(r.number)}
    question, who = r.question(model, "own", **about), sorted(r.training())
    sums = yield [Ask(question, [p]) for p in who]
    found = {p: s.votes for p, s in zip(who, sums, strict=True) if s.votes is not None}
    if len(found) < r.config.min_clients:
        return Step(model, memory, undone=TOO_FEW)
    shapes = shapes_of(model.masks)
    masks = {p: scattered(v > 0, shapes, model.masks) for p, v in found.items()}
    return Step(model, Memory(masks))


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """Every client trains under its mask, all in one exchange; under one mask all at once."""
    if r.options.masks == "server":
        return (yield from tuned()(model, memory, r))
    return (yield from each_trained(model, r, {p: _own(model, memory, p) for p in r.cohort}))


def _settled(model: Model, memory: Memory, r: Round, _: Any) -> Talk[Step]:
    yield from ()
    if r.options.masks == "server":
        return Step(model, memory)
    return Step(model, memory, Notes(method=own_sparsity_of(_own, model, memory, r)))


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    c, scores = config, scores_of(config.plugin)
    early = [n for n, s in scores.items() if s.at_start or (not s.asks and s.rescored)]
    late = c.score not in early
    found = [
        ("score", late, "it prunes at initialisation", ", ".join(early)),
        ("sparsity", c.sparsity is None, "every client's mask is of one", "a number"),
    ]
    if options.masks == "clients":
        own = "clients train under masks of their own"
        theirs = ("score_wire", "score_cohort", "combine", "normalise")
        found += [
            *not_read(c, theirs, "clients prune by themselves"),
            ("secure", c.secure != "none", own, "none, or masks server"),
            ("dp", c.dp != "none", own, "none, or masks server"),
            ("calibration", c.calibration == "sequential", own, "dense, local"),
            ("score-steps", c.score_steps != 1, own, "1, or masks server"),
            ("shrink", c.shrink != "never", "the global model is not pruned", "never"),
            *apart_conflicts(c),
            asked_alone(c),
            ("rewind", c.rewind is not None, "it prunes at initialisation", "leave it out"),
            ("reconstruct", c.reconstruct is not None, own, "leave it out"),
            ("reduce", bool(c.reduce), own, "leave it out"),
        ]
    return found


METHOD = Method(
    "every client prunes at initialisation by its own scores, and trains under its mask",
    "FedPaI, Wang et al. 2025, arXiv 2504.00308, of which abstract and summaries were read",
    tune=_trained,
    before=_pruned,
    after=_settled,
    memory=Memory,
    options=Options,
    own=_own,
    conflicts=_conflicts,
    sets={"schedule": "one-shot", "warmup": 0},
    usual={"score": "grasp", "sparsity": 0.9},
)
