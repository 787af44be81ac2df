"""READ FIRST: a round of federated pruning. Score, prune, tune, average, measure.

`loop` is the loop. What is asked and decided in a round is the *method*'s, with what *riders* add
(`fedprune.methods.method`: READ SECOND). This driver owns the rest: it draws the cohort, books
bytes, failures and who has what, gives a void round back, measures, and writes the row. It knows
one port, *ask*: "put this question to these partitions and give me their answers, folded into one
sum". Engines implement it (inline, a Flower grid); nothing here knows Flower, Ray, a clock or a
global random number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fedprune.config.cohort import measurers, selected
from fedprune.methods.acting import (
    begun,
    finished,
    learnt,
    opened,
    over,
    phase_of,
    round_of,
    trained,
)
from fedprune.methods.best import waited_enough, with_best
from fedprune.methods.measuring import judged, validated
from fedprune.methods.thinning import thinned
from fedprune.privacy.ledger import Spent
from fedprune.protocol.port import Port
from fedprune.server.diagnostics import Notes
from fedprune.server.fleet import fleet_port
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.rows import Row, row
from fedprune.server.shrink import fitted
from fedprune.server.standing import booked, resting_in, struck, why_void, without_resting
from fedprune.server.state import State, reverted


def loop(state: State, plan: Plan, port: Port) -> Iterator[tuple[State, Row]]:
    """The loop: from `state` on, one state and one row of the report after every round."""
    plan = fitted(plan, state.edits)
    state = begun(state, Round(state.round, plan))
    while state.round < plan.config.rounds and not waited_enough(state, plan):
        before = state
        try:
            state, plan, told = one_round(state, plan, port)
        except Spent:
            return  # what the round had asked so far is booked, and changes nothing
        state = with_best(state, before, plan, told)
        yield state, told


def one_round(state: State, plan: Plan, port: Port) -> tuple[State, Plan, Row]:
    """The state after a round, the plan that fits it, and the round's row of the report.

    A round of whose changes too few came is void, and one whose model is no number: the model is as
    it was before, whatever was decided on the way, and what was due in it is due in the next one.

    Raises:
        Spent: the privacy budget does not allow for the next question.
    """
    c, book = plan.config, replace(state.book, failures=(), notices=(), kept={})
    state = replace(state, round=state.round + 1, book=book)
    resting, port = resting_in(state), without_resting(port, state)
    port = fleet_port(port, state, plan)
    first = r = round_of(state, plan, port)
    old, phase = replace(state, pending=r.due), phase_of(state, r)
    state, r = opened(state, r, port)
    r = replace(r, cohort=selected(c, port.training(), state.round))
    state, r, notes = thinned(state, r, port)
    state, model, changes = trained(state, r, port)
    if model is None:
        why = why_void(changes, r.cohort, c)
        state, asked = validated(reverted(old, state), r, port)
        totals = asked.totals
    else:
        state, r, notes = learnt(state, r, port, model, changes, notes)
        changes = changes.without_tensors()  # the float64 sum is twice the weights
        state, totals, why = judged(state, old, r, port)
        state, changes = booked(state, changes, why)
        if not why:
            state, more = finished(state, r, port)
            notes = notes.joined(more)
    if why:
        r, notes = replace(r, plan=first.plan), Notes(undone=f"void, nothing changes: {why}")
    notes = replace(notes, left_out=resting or None)
    measuring = measurers(c, port.measuring(), state.round)
    state = replace(state, book=struck(state, c, r.cohort, measuring, r.scored))
    phase = "recover" if over(state, r) and notes.adaptive is None else phase
    return state, r.plan, row(state, r.plan, r.cohort, changes, totals, notes, phase)
