"""READ FIRST: a round of federated pruning. Score, prune, tune, average, measure.

`run` is the loop. It knows one port, *ask*: "put this question to these partitions and give me
their answers, folded into one sum". Engines implement it (inline, a Flower grid); nothing here
knows Flower, Ray, a clock or a global random number. This is the server's half; how it decides a
mask is in `deciding`, the client's half is in `answering`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fedprune.adapting import adapted
from fedprune.asking import Bench
from fedprune.cohorts import drawn, too_few
from fedprune.comparing import blend
from fedprune.compression.skeleton import skeleton_digest
from fedprune.compression.wire import digest_of
from fedprune.deciding import collected, thin, united
from fedprune.learning.averaging import averaged
from fedprune.learning.moving import moved
from fedprune.learning.training import learning_rate
from fedprune.messages import Folded, Question
from fedprune.notes import Notes, agreement_of
from fedprune.privacy.ledger import Spent
from fedprune.reducing import Told, reduced
from fedprune.refitting import refitted
from fedprune.report.rows import Row, row
from fedprune.secure.noticing import noticed
from fedprune.shrinking import fitted, kept_small
from fedprune.state import Plan, Port, State, Totals
from fedprune.teacher import schooled, teaching
from fedprune.tensors import masked


def run(state: State, plan: Plan, port: Port) -> Iterator[tuple[State, Row]]:
    """The loop: from `state` on, one state and one row of the report after every round."""
    c, plan = plan.config, fitted(plan, state.edits)
    state = remembered(state, plan)
    while state.round < c.rounds:
        try:
            state, plan, told = one_round(state, plan, port)
        except Spent:
            return  # what the round had asked so far is booked, and changes nothing
        yield state, told


def one_round(state: State, plan: Plan, port: Port) -> tuple[State, Plan, Row]:
    """The state after a round, the plan that fits it, and the round's row of the report.

    Raises:
        Spent: the privacy budget does not allow for the next question.
    """
    c = plan.config
    state = replace(state, round=state.round + 1, failures=(), notices=())
    cohort = drawn(c, port.training(), state.round)
    due = state.owed or plan.prunes(state.round)
    state = before_pruning(state, plan, port, due=due)
    state, plan, notes = thinned(state, plan, port, cohort, due=due)
    state, changes = tune_all(state, plan, port, cohort, due=due)
    before, state = state, average(state, plan, changes)
    state, shares = blend(before, state, _bench(plan, port, cohort))
    if due and c.score_during == "tune":
        state = collected(state, plan, changes)
    state, plan = kept_small(state, plan)
    state = followed(remembered(state, plan), before, plan)
    state, totals = measure(state, port, "validation")
    agreement = notes.agreement if changes.votes is None else agreement_of(changes)
    notes = replace(notes, blend=shares, agreement=agreement)
    return state, plan, row(state, plan, cohort, changes, totals, notes)


def before_pruning(state: State, plan: Plan, port: Port, *, due: bool) -> State:
    """The state with what is kept of the dense model when it ends: its quality, the teacher."""
    if due and state.round == plan.config.warmup + 1:
        state, totals = measure(state, port, "test")
        state = replace(state, dense_at_pruning=totals)
    return schooled(state, plan, due=due)


def thinned(
    state: State, plan: Plan, port: Port, cohort: Sequence[int], *, due: bool
) -> tuple[State, Plan, Notes]:
    """The smaller state before tuning: pruned if that is `due`, and without what is redundant."""
    notes, c = Notes(), plan.config
    if due and plan.asks_first:
        state, notes = score_and_prune(state, plan, port, cohort)
        state, plan = kept_small(state, plan)
    if c.reduce and state.round == c.reduce_round:
        state, plan, told = reduce(state, plan, port, cohort)
        notes = replace(notes, reduced=told)
    return state, plan, notes


def remembered(state: State, plan: Plan) -> State:
    """The state with its weights kept for later, in the round that ``--rewind`` names."""
    due = plan.config.rewind == state.round and state.early is None
    return replace(state, early=state.weights) if due else state


def followed(state: State, before: State, plan: Plan) -> State:
    """The state with the round in its running average, where one is wanted."""
    c, moving = plan.config, state.moving
    if c.moving == "none" or (c.moving == "swa" and state.round < c.end):
        return state
    if state.completed > before.completed:
        moving = moved(moving, state.weights, state.masks, plan.layout, c.moving_decay)
    elif moving is not None:
        moving = replace(moving, weights=masked(moving.weights, state.masks))
    return replace(state, moving=moving)


def outcome(state: State) -> State:
    """The state with the weights that are its result: the running average, where there is one."""
    return state if state.moving is None else replace(state, weights=state.moving.weights)


def score_and_prune(
    state: State, plan: Plan, port: Port, cohort: Sequence[int]
) -> tuple[State, Notes]:
    """The cohort's summed statistics, and the state under the mask they give."""
    bench = _bench(plan, port, cohort)
    thinner, notes = (adapted if plan.adapts else thin)(state, bench)
    thinner, left = refitted(thinner, state, bench)
    return thinner, replace(notes, refit=left)


def reduce(
    state: State, plan: Plan, port: Port, cohort: Sequence[int]
) -> tuple[State, Plan, Told | None]:
    """The state without what is redundant in it, the plan that fits it, and what was done."""
    out = reduced(state, _bench(plan, port, cohort))
    return out.state, out.plan, out.told


def _bench(plan: Plan, port: Port, cohort: Sequence[int]) -> Bench:
    def put(at: State, question: Question, partitions: Sequence[int]) -> tuple[State, Folded]:
        return _put(at, port, question, partitions)

    return Bench(plan, put, _question, cohort, port.measuring)


def tune_all(
    state: State, plan: Plan, port: Port, cohort: Sequence[int], *, due: bool = False
) -> tuple[State, Folded]:
    """The cohort's summed changes after training under the current mask.

    Where a pruning is `due`, the clients may collect statistics on the way, or prune by a mask of
    their own before they train.
    """
    c = plan.config
    what: dict[str, Any] = {"lr": learning_rate(c, state.round), **teaching(state, plan)}
    if due and not plan.asks_first:
        own = c.masks != "global"
        what |= {"score": c.score, "sparsity": plan.sparsity(state.round) if own else None}
        what |= {"progress": plan.progress(state.round)}
    state, changes = _put(state, port, _question(state, "tune", **what), cohort)
    down, up = plan.dense_packet
    dense = down * len(cohort) + up * len(changes.answered)
    traffic = replace(state.traffic, dense=state.traffic.dense + dense)
    return replace(state, traffic=traffic), changes


def average(state: State, plan: Plan, changes: Folded) -> State:
    """The state with the mean change applied; as it was, if too few answered.

    Where the clients trained under masks of their own, the global mask is decided here too.
    """
    c = plan.config
    if changes.total is None or too_few(changes, c):
        own = c.masks != "global" and plan.prunes(state.round)
        return replace(state, owed=state.owed or own)
    weights = averaged(
        state.weights,
        changes.total,
        changes.weight,
        state.masks,
        plan.layout,
        c.server_lr,
        held=changes.held,
        rule=c.average or "fedavg",
    )
    state = replace(state, weights=weights, completed=state.completed + 1)
    return state if changes.votes is None else united(state, plan, changes.votes)


def measure(state: State, port: Port, part: str) -> tuple[State, Totals]:
    """Loss, correct and count summed over a held-out part of everyone who is there.

    Of the running average, where there is one.
    """
    question = _question(outcome(state), "evaluate", part=part)
    state, folded = _put(state, port, question, port.measuring())
    return state, folded.totals


def describe(state: State, port: Port) -> tuple[State, Folded]:
    """How often each label occurs in the training and test parts of everyone who is there."""
    return _put(state, port, _question(state, "describe"), port.measuring())


def census(state: State, port: Port, table: str) -> tuple[State, Folded]:
    """How often each token occurs in the training and validation parts of everyone who is there.

    Args:
        state: the model that is asked about.
        port: the clients.
        table: name of the embeddings, with a row for every token.
    """
    question = _question(state, "tokens", names=(table,))
    return _put(state, port, question, list(port.present()))


def _question(state: State, kind: str, **what: Any) -> Question:
    digest = skeleton_digest(state.masks, state.edits)
    known = frozenset(p for p, held in state.known.items() if held == digest)
    what |= {"known": known, "edits": state.edits}
    return Question(kind, state.round, state.weights, state.masks, **what)


def _put(
    state: State, port: Port, question: Question, partitions: Sequence[int]
) -> tuple[State, Folded]:
    folded = port.ask(question, partitions)
    digest = skeleton_digest(state.masks, state.edits)
    t = state.traffic
    if question.kind in {"evaluate", "describe"}:
        t = replace(t, evaluation=t.evaluation + folded.bytes_up + folded.bytes_down)
    else:
        t = replace(t, up=t.up + folded.bytes_up, down=t.down + folded.bytes_down)
    taught = dict.fromkeys(folded.answered, digest_of(question.teacher))
    state = noticed(state, question.kind, folded)
    return replace(
        state,
        taught={**state.taught, **taught} if question.teacher else state.taught,
        known={**state.known, **dict.fromkeys(folded.answered, digest)},
        traffic=t,
        failures=state.failures + folded.failures,
        failed=state.failed + len(folded.failures),
    ), folded
