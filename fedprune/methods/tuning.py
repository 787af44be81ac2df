"""Training in a round, averaging (FedAvg), and a method made of the usual functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedprune.adapters.factors import (
    adapter_layout,
    changed_by,
    effective,
    first_adapters,
    trained_shapes,
)
from fedprune.adapters.options import adapter_scale, rank_of
from fedprune.adapters.products import mean_of_products, of_rank, stacked
from fedprune.config.rates import learning_rate
from fedprune.learning.averaging import averaged, averages_of
from fedprune.learning.options import Averaging
from fedprune.learning.robust import robust_change
from fedprune.methods.method import Method, Trained
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.port import Ask
from fedprune.protocol.running_sum import summed, totals_added
from fedprune.server.round import Round, Step, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, Tensors, masked, scattered


def tuning(model: Model, r: Round, **what: Any) -> Talk[Aggregate]:
    """The cohort's summed changes after training under the model's mask."""
    (changes,) = yield [tuning_ask(model, r, r.cohort, **what)]
    return changes


def tuning_ask(model: Model, r: Round, partitions: Sequence[int], **what: Any) -> Ask:
    """The question to train: with the round's learning rate, and with what riders say."""
    about = {"lr": learning_rate(r.config, r.number), **r.along, **what}
    return Ask(r.question(model, "tune", **about), partitions)


def fedavg(model: Model, r: Round, changes: Aggregate, rate: float | None = None) -> Model:
    """The model with the cohort's mean change, or that of a robust rule (``--robust``).

    At a rate, which is the server's (`change_rate`) where none is given.
    """
    c = r.config
    assert changes.total is not None  # else the round is void
    total, weight = changes.total, changes.weight
    where = (model.weights, model.masks, r.layout)
    if model.adapters:
        where = (model.adapters, {}, adapter_layout(shapes_of(model.adapters)))
    if changes.singles is not None:
        total, weight = robust_change(c.robust, changes.singles, c.byzantine or 0, *where), 1.0
    rate = change_rate(c) if rate is None else rate
    rule, table = c.average or "fedavg", averages_of(c.plugin)
    moved = averaged(
        where[0], total, weight, *where[1:], rate, held=changes.held, rule=rule, table=table
    )
    return with_moved(model, r, moved)


def change_rate(config: Averaging) -> float:
    """The factor on the mean change: 1 where ``--server-optimizer`` makes its own step of it."""
    return config.server_lr if config.server_optimizer == "sgd" else 1.0


def with_moved(model: Model, r: Round, moved: Tensors) -> Model:
    """The model with other values of what is trained: its weights, or its adapters."""
    if not model.adapters:
        return replace(model, weights=moved)
    frozen = masked({n: r.plan.frozen[n] for n in changed_by(moved)}, model.masks)
    found = effective(frozen, moved, model.masks, r.layout, adapter_scale(r.config))
    return replace(model, weights={**model.weights, **found}, adapters=moved)


def each_by_its_rank(model: Model, r: Round, **what: Any) -> Talk[Trained]:
    """Every client trains factors of its own rank, in one exchange; their products are averaged."""
    ranks = {p: rank_of(r.config, p, r.plan.tiers) for p in r.cohort}
    trained, _ = yield from trained_by_rank(model, r, ranks, **what)
    return trained


@dataclass(frozen=True)
class TrainedFactors:
    """What a client made of its factors."""

    start: Tensors  # that it began with
    after: Tensors  # training
    changes: Aggregate  # its answer


def trained_by_rank(
    model: Model,
    r: Round,
    ranks: Mapping[int, int],
    masks: Mapping[int, Masks] | None = None,
    **what: Any,
) -> Talk[tuple[Trained, dict[int, TrainedFactors]]]:
    """The model with the mean of its clients' products, and what each client made of its factors.

    Every client that has a rank is asked, under its mask where that is not the model's.
    """
    c, stack = r.config, r.config.adapter_mean == "stack"
    asks, begun = [], []
    for p, rank in ranks.items():
        own = model.under(masks[p]) if masks else model
        sent = own if stack else replace(own, adapters=of_rank(model.adapters, rank))
        more = {"fresh": rank} if stack else {}
        asks.append(tuning_ask(sent, r, [p], **what, **more))
        shapes = trained_shapes(sent.adapters, rank if stack else 0, r.layout)
        where = (c.seed, r.number, p)
        begun.append(first_adapters(shapes, sent.adapters, *where) if stack else sent.adapters)
    sums = yield asks
    came = {
        p: TrainedFactors(start, _after(start, s.total / s.weight), s)
        for p, start, s in zip(ranks, begun, sums, strict=True)
        if s.total is not None
    }
    changes = answered_by_all(sums)
    if not came or too_few(changes, c):
        return Trained(None, changes), came
    those = [(each.changes.weight, each.after) for each in came.values()]
    if stack:
        moved = stacked(model.adapters, those, c.server_lr)
    else:
        moved = mean_of_products(model.adapters, those, c.rank or 0, c.server_lr)
    return Trained(with_moved(model, r, moved), changes), came


def _after(start: Tensors, change: Tensor) -> Tensors:
    moves = scattered(change, shapes_of(start), {})
    return {n: (t.double() + moves[n]).float() for n, t in start.items()}


TOO_FEW = "not pruned: too few answered"


def void(changes: Aggregate, r: Round) -> bool:
    """Whether too few clients trained for a round that counts."""
    return changes.total is None or too_few(changes, r.config)


def tuned(
    about: Callable[[Round], dict[str, Any]] = lambda _: {},
    update: Callable[[Model, Round, Aggregate], Model] = fedavg,
) -> Callable[[Model, Any, Round], Talk[Trained]]:
    """A round's training: ask the cohort, and what `about` says, and average by `update`."""

    def tune(model: Model, _: Any, r: Round) -> Talk[Trained]:
        if model.adapters and r.config.adapter_mean != "factors":
            return (yield from each_by_its_rank(model, r, **about(r)))
        return (yield from with_mean(model, r, update, **about(r)))

    return tune


def with_mean(
    model: Model, r: Round, update: Callable[[Model, Round, Aggregate], Model] = fedavg, **what: Any
) -> Talk[Trained]:
    """The model updated by what the cohort sums after training."""
    changes = yield from tuning(model, r, **what)
    return Trained(None if void(changes, r) else update(model, r, changes), changes)


def method(
    ask: Callable[[Model, Any, Round], Sequence[Ask]],
    decide: Callable[[Model, Any, Round, list[Aggregate]], Step],
    update: Callable[[Model, Round, Aggregate], Model] = fedavg,
    **about: Any,
) -> Method:
    """A method of the usual functions: ask, decide, and update, with ``init=`` for a memory.

    Where one of the asks has too few answers, the pruning comes to nothing.

    Args:
        ask: what to ask before a pruning.
        decide: from the sums to the pruned model and the new memory.
        update: from the cohort's summed changes to the next model.
        about: the other attributes of a `Method`.
    """

    def before(model: Model, memory: Any, r: Round) -> Talk[Step]:
        sums = yield ask(model, memory, r)
        if any(too_few(found, r.config) for found in sums):
            return Step(model, memory, undone=TOO_FEW)
        return decide(model, memory, r, sums)

    return Method(tune=tuned(update=update), before=before, **about)


def answered_by_all(sums: Sequence[Aggregate]) -> Aggregate:
    """Who answered in all of an exchange, and their totals; no tensors but resampled totals."""
    out = summed(Aggregate(resampled=each.resampled) for each in sums)
    for each in sums:
        out = replace(
            out,
            totals=totals_added(out.totals, each.totals),
            answered=(*out.answered, *each.answered),
            failures=(*out.failures, *each.failures),
            loud=(*out.loud, *each.loud),
        )
    return replace(out, answered=tuple(sorted(out.answered)))
