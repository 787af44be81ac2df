"""READ FIRST: a round of federated pruning. Score, prune, tune, average, measure.

`run` is the loop. It knows one port, *ask*: "put this question to these partitions and give me
their answers, folded into one sum". Engines implement it (inline, a Flower grid); nothing here
knows Flower, Ray, a clock or a global random number. This is the server's half; how it decides a
mask is in `fedprune.methods`, the client's half is in `fedprune.client.answers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fedprune.config.cohort import drawn
from fedprune.config.rates import learning_rate
from fedprune.learning.averaging import averaged
from fedprune.learning.moving_average import moved
from fedprune.learning.robust import robust_change
from fedprune.methods.adaptive import adapted
from fedprune.methods.distil import teaching, with_teacher_kept
from fedprune.methods.global_mask import collected, merged_client_masks, thin
from fedprune.methods.reconstruct import reconstructed
from fedprune.methods.reduce import reduced
from fedprune.methods.vocabulary import with_used_tokens
from fedprune.privacy.ledger import Spent
from fedprune.protocol.messages import Aggregate
from fedprune.protocol.port import Port
from fedprune.server.ask import (
    Bench,
    bench_for,
    put,
    question_about,
)
from fedprune.server.compare import blend
from fedprune.server.diagnostics import Notes, agreement_of
from fedprune.server.rows import Row, row
from fedprune.server.shrink import fitted, kept_small
from fedprune.server.standing import (
    all_finite,
    blamed,
    limit_of,
    numberless,
    resting_in,
    struck,
    too_few,
    weighed,
    why_void,
    without_resting,
)
from fedprune.server.state import (
    Plan,
    State,
    Totals,
    undone,
)


def run(state: State, plan: Plan, port: Port) -> Iterator[tuple[State, Row]]:
    """The loop: from `state` on, one state and one row of the report after every round."""
    c, plan = plan.config, fitted(plan, state.edits)
    if c.rewind == 0 and state.round == 0:
        state = remembered(state, plan)
    while state.round < c.rounds:
        try:
            state, plan, told = one_round(state, plan, port)
        except Spent:
            return  # what the round had asked so far is booked, and changes nothing
        yield state, told


def one_round(state: State, plan: Plan, port: Port) -> tuple[State, Plan, Row]:
    """The state after a round, the plan that fits it, and the round's row of the report.

    A round of whose changes too few came is void, and one whose model is no number: the model is as
    it was before, whatever was decided on the way, and what was due in it is due in the next one.

    Raises:
        Spent: the privacy budget does not allow for the next question.
    """
    c, whole = plan.config, plan
    before = state = replace(state, round=state.round + 1, failures=(), notices=())
    port = without_resting(port, state)
    due, phase = plan.due(state), plan.phase(state)
    state = with_used_tokens(state, plan, port)
    plan = fitted(plan, state.edits)
    bench = bench_for(plan, port, drawn(c, port.training(), state.round))
    state, bench, notes = thinned(state, bench, port)
    state, changes = tune_all(state, bench.plan, port, bench.cohort, due=due)
    old = replace(before, owed=due)
    if changes.total is None or too_few(changes, c):
        why = why_void(changes, bench.cohort, c)
        state, totals = measure(undone(old, state), port, "validation")
    else:
        state, plan, notes = learnt(state, bench, changes, notes, due=due)
        state, totals, why = judged(state, old, port)
        state, changes = blamed(state, changes, why) if why else (state, changes)
    if why:
        plan, notes = whole, Notes(undone=f"void, nothing changes: {why}")
    notes = replace(notes, left_out=resting_in(before) or None)
    state = struck(state, c, bench.cohort, port.measuring())
    return state, plan, row(state, plan, bench.cohort, changes, totals, notes, phase)


def thinned(state: State, bench: Bench, port: Port) -> tuple[State, Bench, Notes]:
    """The smaller state before tuning, where that is due: pruned, and without what is redundant."""
    notes, plan = Notes(), bench.plan
    if plan.due(state):
        ready = before_pruning(state, plan, port)
        if plan.asks_first:
            state, notes = score_and_prune(state, ready, bench)
            state, plan = kept_small(state, plan)
        else:
            state = ready
    if plan.reduces(state):
        state, plan, notes = reduce(state, replace(bench, plan=plan), notes)
    return state, replace(bench, plan=plan), notes


def before_pruning(state: State, plan: Plan, port: Port) -> State:
    """The state with what is kept of the model before it is pruned: its quality, the teacher."""
    if not state.prunings:
        state, totals = measure(state, port, "test")
        state = remembered(replace(state, dense_at_pruning=totals), plan)
    return with_teacher_kept(state, plan)


def score_and_prune(state: State, ready: State, bench: Bench) -> tuple[State, Notes]:
    """The state pruned by the cohort's summed statistics, all of it or, if too few answer, none.

    Args:
        state: as it is.
        ready: the same with what is kept of it.
        bench: asks the cohort.
    """
    thinner, notes = (adapted if bench.plan.adapts else thin)(replace(ready, owed=False), bench)
    left = None
    if not thinner.owed:
        thinner, left = reconstructed(thinner, ready, bench)
    if thinner.owed:
        why = "not pruned: too few answered"
        return replace(undone(state, thinner), owed=True), Notes(undone=why)
    return thinner, replace(notes, refit=left)


def reduce(state: State, bench: Bench, notes: Notes) -> tuple[State, Plan, Notes]:
    """The state without what is redundant in it, the plan that fits it, and what was done.

    All of it or, if too few answer, none: then it is due in the next round.
    """
    out = reduced(with_teacher_kept(state, bench.plan), bench)
    if out.told is None:
        why = "not reduced: too few answered"
        why = f"{notes.undone}; {why}" if notes.undone else why
        return undone(state, out.state), bench.plan, replace(notes, undone=why)
    return replace(out.state, reduced=True), out.plan, replace(notes, reduced=out.told)


def learnt(
    state: State, bench: Bench, changes: Aggregate, notes: Notes, *, due: bool
) -> tuple[State, Plan, Notes]:
    """The state with the cohort's mean change, and with what follows from a round that counts."""
    plan, before = bench.plan, state
    state, shares = blend(before, average(state, plan, changes), bench)
    if due and plan.config.score_during == "tune":
        state = collected(state, plan, changes)
    state, plan = kept_small(state, plan)
    pruned = due and not state.owed
    state = replace(state, prunings=state.prunings + pruned)
    state = followed(remembered(state, plan), plan, pruned=pruned)
    agreement = notes.agreement if changes.votes is None else agreement_of(changes)
    return state, plan, replace(notes, blend=shares, agreement=agreement)


def remembered(state: State, plan: Plan) -> State:
    """The state with its weights kept for ``--rewind``, from the round that it names on.

    In the first round from then on that counts, at the latest when pruning begins.
    """
    at = plan.config.rewind
    due = at is not None and state.round >= at and state.early is None and not state.prunings
    return replace(state, early=state.weights) if due else state


def followed(state: State, plan: Plan, *, pruned: bool) -> State:
    """The state with the round in its running average, where one is wanted.

    A mean of the rounds from the last pruning on begins with the round in which that happened.
    """
    c = plan.config
    swa = c.moving == "swa"
    if c.moving == "none" or (swa and (state.round < c.end or state.owed)):
        return state
    before = None if swa and pruned else state.moving
    moving = moved(before, state.weights, state.masks, plan.layout, c.moving_decay)
    return replace(state, moving=moving)


def outcome(state: State) -> State:
    """The state with the weights that are its result: the running average, where there is one."""
    return state if state.moving is None else replace(state, weights=state.moving.weights)


def tune_all(
    state: State, plan: Plan, port: Port, cohort: Sequence[int], *, due: bool = False
) -> tuple[State, Aggregate]:
    """The cohort's summed changes after training under the current mask.

    Where a pruning is `due`, the clients may collect statistics on the way, or prune by a mask of
    their own before they train.
    """
    c = plan.config
    what: dict[str, Any] = {"lr": learning_rate(c, state.round), **teaching(state, plan)}
    what |= {"counted": {p: state.counted.get(p, 0) for p in cohort}} if c.error_feedback else {}
    if due and not plan.asks_first:
        own = c.masks != "global"
        what |= {"score": c.score, "sparsity": plan.sparsity(state.round) if own else None}
        what |= {"progress": plan.progress(state.round)}
    what |= {"limit": limit_of(c, state.norms)}
    state, changes = put(state, port, question_about(state, "tune", **what), cohort)
    state, changes = weighed(state, changes, c)
    down, up = plan.dense_packet
    dense = down * len(cohort) + up * len(changes.answered)
    traffic = replace(state.traffic, dense=state.traffic.dense + dense)
    return replace(state, traffic=traffic), changes


def average(state: State, plan: Plan, changes: Aggregate) -> State:
    """The state with the mean change applied.

    Where the clients trained under masks of their own, the global mask is decided here too.
    """
    c = plan.config
    assert changes.total is not None  # else the round is void
    total, weight = changes.total, changes.weight
    if changes.singles is not None:
        where = (state.weights, state.masks, plan.layout)
        total, weight = robust_change(c.robust, changes.singles, c.byzantine or 0, *where), 1.0
    weights = averaged(
        state.weights,
        total,
        weight,
        state.masks,
        plan.layout,
        c.server_lr,
        held=changes.held,
        rule=c.average or "fedavg",
    )
    state = replace(state, weights=weights, completed=state.completed + 1)
    if c.error_feedback:
        newest = dict.fromkeys(changes.answered, state.round)
        state = replace(state, counted={**state.counted, **newest})
    return state if changes.votes is None else merged_client_masks(state, plan, changes.votes)


def judged(state: State, old: State, port: Port) -> tuple[State, Totals, str]:
    """The new model measured, or the old one in its place, and why.

    A new model takes the old one's place unless it holds what is not finite, or most of those who
    measure it get no number, and more than of the old one. That is no failure of theirs.
    """
    if not all_finite(state.weights):
        why = "the new model would not be finite"
        return *measure(undone(old, state), port, "validation"), why
    new, aggregate = measured(state, port, "validation")
    lost = len(numberless(aggregate.failures))
    if lost <= len(aggregate.answered):
        return new, aggregate.totals, ""
    back = replace(undone(old, new), failures=state.failures, failed=state.failed)
    back, before = measured(back, port, "validation")
    if len(numberless(before.failures)) < lost:
        return back, before.totals, f"of the new model {lost} clients get no number"
    return replace(new, traffic=back.traffic), aggregate.totals, ""


def measure(state: State, port: Port, part: str) -> tuple[State, Totals]:
    """Loss, correct and count summed over a held-out part of everyone who is there.

    Of the running average, where there is one.
    """
    state, aggregate = measured(state, port, part)
    return state, aggregate.totals


def measured(state: State, port: Port, part: str) -> tuple[State, Aggregate]:
    """The same sums, with who answered and who did not."""
    question = question_about(outcome(state), "evaluate", part=part)
    return put(state, port, question, port.measuring())


def describe(state: State, port: Port) -> tuple[State, Aggregate]:
    """How often each label occurs in the training and test parts of everyone who is there."""
    return put(state, port, question_about(state, "describe"), port.measuring())
