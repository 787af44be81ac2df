"""Measuring on the clients' held-out parts, and whether a new model takes the old one's place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import mean

from fedprune.config import RunConfig
from fedprune.config.cohort import measurers, measures_in
from fedprune.learning.regime import PLAIN_REGIME
from fedprune.methods.catalog import method_name, method_of, riders_of
from fedprune.methods.global_mask import sparsity_of
from fedprune.methods.tuning import answered_by_all
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.port import Ask, Port
from fedprune.server.ask import conversed
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Talk
from fedprune.server.rows import quality
from fedprune.server.standing import all_finite, numberless
from fedprune.server.state import Model, State, Totals, reverted
from fedprune.tasks.resampling import ends_of_intervals
from fedprune.tensors.named import Masks


def outcome(state: State, config: RunConfig) -> Model:
    """The model that is the result: of the running average, where there is one."""
    model = state.model
    for name, rider in riders_of(config).items():
        if rider.outcome and name in state.memories:
            model = rider.outcome(model, state.memories[name])
    return model


def measure(state: State, r: Round, port: Port, part: str) -> tuple[State, Totals]:
    """Loss, correct and count summed over a held-out part of everyone who is there.

    Of the running average, where there is one. With the ends of 95 % intervals, where there are.
    """
    state, aggregate = measured(state, r, port, part, port.measuring())
    return state, with_intervals(aggregate, r.config)


def with_intervals(aggregate: Aggregate, config: RunConfig) -> Totals:
    """The totals, and the ends of intervals if two clients or more were resampled."""
    sums, totals = aggregate.resampled, aggregate.totals
    if sums is None or len(aggregate.answered) < 2:
        return totals
    return totals | ends_of_intervals(sums, totals, lambda t: quality(dict(t), config))


def validated(state: State, r: Round, port: Port) -> tuple[State, Aggregate]:
    """The sums of those who measure on validation after this round; nothing, if it has none."""
    if not measures_in(r.config, r.number):
        return state, Aggregate()
    return measured(state, r, port, "validation", measurers(r.config, port.measuring(), r.number))


def measured(
    state: State, r: Round, port: Port, part: str, whom: Sequence[int]
) -> tuple[State, Aggregate]:
    """The same sums over these partitions, with who answered and who did not."""
    own = method_of(r.config).regime
    how = {"part": part, "regime": own if own.alone else PLAIN_REGIME}
    question = r.question(outcome(state, r.config), "evaluate", **how)
    state, (aggregate,) = _exchanged(state, r, port, [Ask(question, whom)])
    return state, aggregate


def judged(state: State, old: State, r: Round, port: Port) -> tuple[State, Totals, str]:
    """The new model measured, where this round measures, or the old one in its place, and why.

    A new model takes the old one's place unless it holds what is not finite, or most of those who
    measure it get no number, and more than of the old one. That is no failure of theirs.
    """
    if not all_finite(state.weights):
        why = "the new model would not be finite"
        back, aggregate = validated(reverted(old, state), r, port)
        return back, aggregate.totals, why
    new, aggregate = validated(state, r, port)
    lost = len(numberless(aggregate.failures))
    if lost <= len(aggregate.answered):
        return new, aggregate.totals, ""
    back = reverted(old, new)
    book = replace(back.book, failures=state.book.failures, failed=state.book.failed)
    back, before = validated(replace(back, book=book), r, port)
    if len(numberless(before.failures)) < lost:
        return back, before.totals, f"of the new model {lost} clients get no number"
    new = replace(new, book=replace(new.book, traffic=back.book.traffic))
    return new, aggregate.totals, ""


def described(state: State, r: Round, port: Port) -> tuple[State, Aggregate]:
    """How often each label occurs in the training and test parts of everyone who is there."""
    asks = [Ask(r.question(state.model, "describe"), port.measuring())]
    state, (aggregate,) = _exchanged(state, r, port, asks)
    return state, aggregate


def own_measured(state: State, r: Round, port: Port) -> tuple[State, Totals]:
    """Test totals of every client's own model on its own part; none where clients have none."""
    own, memory = method_of(r.config).own, state.memories.get(method_name(r.config))
    if own is None:
        return state, {}
    models = {p: own(state.model, memory, p) for p in port.measuring()}
    how = {"part": "test", "regime": method_of(r.config).regime}
    asks = [Ask(r.question(m, "evaluate", **how), [p]) for p, m in models.items()]
    state, sums = _exchanged(state, r, port, asks)
    return state, with_intervals(answered_by_all(sums), r.config)


def _exchanged(
    state: State, r: Round, port: Port, asks: Sequence[Ask]
) -> tuple[State, list[Aggregate]]:
    """The state with one exchange booked, and its sums."""

    def talk() -> Talk[list[Aggregate]]:
        return (yield asks)

    sums, book = conversed(talk(), state.book, r.plan, port)
    return replace(state, book=book), sums


def own_masks(state: State, plan: Plan, partitions: Iterable[int]) -> list[Masks]:
    """The masks of these clients' own models; empty where they have none."""
    c = plan.config
    own, memory = method_of(c).own, state.memories.get(method_name(c))
    return [] if own is None else [own(state.model, memory, p).masks for p in partitions]


def own_sparsity(masks: Sequence[Masks], plan: Plan) -> float | None:
    """The mean sparsity of the clients' own models, by their masks; None where they have none."""
    return mean(sparsity_of(m, plan.layout) for m in masks) if masks else None
