"""LotteryFL: every client has a mask of its own, pruned while its model does well for it.

Li et al. 2020, arXiv 2008.03371, algorithm 1. A client is sent the global weights under its own
mask. If that model's accuracy on its validation part reaches a threshold, and its mask is not as
sparse as is wanted in the end, the smallest of its weights go (a part of those it has), and the
others go back to what they were before round one. It trains and sends its change; each weight is
averaged over the clients that hold it: Σ n_k m_k w_k / Σ n_k m_k.

Where it departs from the paper: masks are kept and decided by the server, which knows the weights
they are decided by; it asks each client for its accuracy. Accuracy is the task's share of right
labels, of next tokens too. Pruning happens in the rounds in which ``--schedule`` prunes, up to
``--sparsity`` at the schedule's end. Whom nobody asked yet holds the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from fedprune.config import RunConfig
from fedprune.methods.apart import NO_STATISTICS, apart_conflicts, asked_alone, not_read
from fedprune.methods.global_mask import sparsity_of
from fedprune.methods.holders import each_trained, own_sparsity_of
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.tuning import TOO_FEW
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.protocol.choice import Wanted, chosen
from fedprune.protocol.port import Ask
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import Masks, Tensors


class Options(Section):
    """What ``--method-options`` takes."""

    threshold: float = option("method", "accuracy from which a client prunes", 0.5, ge=0, le=1)
    rate: float = option("method", "part of a client's weights that go at a time", 0.2, gt=0, lt=1)


@dataclass(frozen=True)
class Memory:
    """The weights before round one, each client's mask, and who pruned in this round."""

    start: Tensors
    masks: dict[int, Masks] = field(default_factory=dict)
    pruned: frozenset[int] = frozenset()


def _own(model: Model, memory: Memory, partition: int) -> Model:
    return model.under(memory.masks.get(partition, model.masks))


def _thinned(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The masks of those clients pruned whose own model is good enough for them."""
    models = {p: _own(model, memory, p) for p in r.cohort}
    sums = yield [Ask(r.question(m, "evaluate", part="validation"), [p]) for p, m in models.items()]
    found = {p: s.totals for p, s in zip(models, sums, strict=True) if s.totals.get("count")}
    if len(found) < r.config.min_clients:
        return Step(model, memory, undone=TOO_FEW)
    accuracy = {p: t["correct"] / t["count"] for p, t in found.items()}
    able = [p for p, right in accuracy.items() if right >= r.options.threshold]
    fresh = {p: m for p in able if (m := without_smallest(models[p], r)) is not None}
    memory = Memory(memory.start, {**memory.masks, **fresh}, frozenset(fresh))
    told: dict[str, Any] = {"accuracy": mean(accuracy.values()), "pruned": sorted(fresh)}
    return Step(model, memory, Notes(method=told))


def without_smallest(model: Model, r: Round) -> Masks | None:
    """The mask without the smallest part of what it keeps; None: it is as sparse as is wanted."""
    now, final = sparsity_of(model.masks, r.layout), r.config.sparsity or 0.0
    if now >= final:
        return None
    then = min(final, now + r.options.rate * (1.0 - now))
    weights = {n: model.weights[n] for n in model.masks}
    sizes = {n: w.abs() for n, w in weights.items()}
    wanted = Wanted(then, r.config.scope, then / final)
    return chosen(sizes, wanted, r.config, r.layout, model.masks, weights)


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """Every client trains its own model, all in one exchange."""
    begin = replace(model, weights=memory.start)
    those = {p: _own(begin if p in memory.pruned else model, memory, p) for p in r.cohort}
    return (yield from each_trained(model, r, those))


def _settled(model: Model, memory: Memory, r: Round, _: Any) -> Talk[Step]:
    yield from ()
    told = {**own_sparsity_of(_own, model, memory, r), "tickets": len(memory.masks)}
    return Step(model, replace(memory, pruned=frozenset()), Notes(method=told))


def _conflicts(config: RunConfig, _: Options) -> list[Refusable]:
    c, rate = config, "how much goes at a time is the option rate"
    free = c.schedule not in ("cubic", "one-shot")
    return [
        ("sparsity", c.sparsity is None, "every client's mask ends at one", "a number"),
        ("score", "score" in c.given and c.score != "magnitude", "the smallest go", "magnitude"),
        ("unit", c.unit != "weight", "single weights go", "weight"),
        ("schedule", free, rate, "cubic, one-shot"),
        ("score-steps", c.score_steps != 1, rate, "1"),
        asked_alone(c),
        ("shrink", c.shrink != "never", "the global model is not pruned", "never"),
        ("rewind", c.rewind is not None, "it goes back to the weights before round one", "none"),
        ("reconstruct", c.reconstruct is not None, "it goes back to earlier weights", "leave out"),
        *apart_conflicts(c),
        *not_read(c, NO_STATISTICS, "nobody is asked for statistics"),
        ("reduce", bool(c.reduce), "clients have models of their own", "leave it out"),
    ]


METHOD = Method(
    "every client prunes a mask of its own while its accuracy is high, from the first weights",
    "LotteryFL, Li et al. 2020, arXiv 2008.03371; the server keeps and decides the masks",
    tune=_trained,
    before=_thinned,
    after=_settled,
    memory=Memory,
    init=lambda model, _: Memory(model.weights),
    options=Options,
    own=_own,
    scores=False,
    apart=True,
    conflicts=_conflicts,
)
