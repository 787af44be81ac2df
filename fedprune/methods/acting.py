"""What the method and the riders do in each part of a round, and what they remember of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from fedprune.learning.options import trains
from fedprune.methods.catalog import method_name, method_of, method_options_of, riders_of
from fedprune.methods.measuring import outcome
from fedprune.methods.method import Method, Nothing, Rider
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.port import Port
from fedprune.server.ask import conversed
from fedprune.server.diagnostics import Notes
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Step, Talk
from fedprune.server.shrink import Reshaped, carried, fitted
from fedprune.server.state import Model, State, reverted

_T = TypeVar("_T")


def begun(state: State, r: Round) -> State:
    """The state with a memory for the method and every rider that has none yet."""
    c = r.config
    those: dict[str, Method | Rider] = {method_name(c): method_of(c), **riders_of(c)}
    r = replace(r, options=method_options_of(c))
    fresh = {
        n: v.init(state.model, r) if v.init else v.memory()
        for n, v in those.items()
        if n not in state.memories
    }
    return replace(state, memories={**state.memories, **fresh})


def round_of(state: State, plan: Plan, port: Port) -> Round:
    """What is known of the state's round before its cohort is drawn."""
    return Round(
        state.round,
        plan,
        everyone=port.measuring,
        training=lambda: list(port.training()),
        present=lambda: list(port.present()),
        due=plan.due(state),
        prunings=state.prunings,
        options=method_options_of(plan.config),
    )


def phase_of(state: State, r: Round) -> str:
    """What the round is in the run, for its row."""
    riders = riders_of(r.config).items()
    return r.plan.phase(state, reduces=any(v.due(state.memories[n], r) for n, v in riders))


def held(state: State, r: Round, port: Port, talk: Talk[_T]) -> tuple[State, _T]:
    """Hold a conversation: the state with what was asked in it booked, and what it returns."""
    out, book = conversed(talk, state.book, r.plan, port)
    return replace(state, book=book), out


def settled(state: State, r: Round, name: str, step: Step) -> tuple[State, Round]:
    """The state with a step's model and memory, and the round that fits it.

    If the model was cut, all memories are cut with it. One that holds what is no more begins anew.
    """
    smaller = fitted(r.plan, step.model.edits)
    state = replace(state, memories={**state.memories, name: step.memory})
    memories, r = cut_memories(state, r.plan, smaller), replace(r, plan=smaller)
    return begun(replace(state, model=step.model, memories=memories), r), r


def cut_memories(state: State, old: Plan, new: Plan) -> dict[str, Any]:
    """The state's memories after the model was edited, without those that hold what is no more."""
    memories = {}
    for name, memory in state.memories.items():
        with suppress(Reshaped):
            memories[name] = carried(memory, old, new)
    return memories


def opened(state: State, r: Round, port: Port) -> tuple[State, Round]:
    """The state after what riders do before a cohort is drawn."""
    for name, rider in riders_of(r.config).items():
        if rider.opening:
            talk = rider.opening(state.model, state.memories[name], r)
            state, step = held(state, r, port, talk)
            state, r = settled(state, r, name, step)
    return state, r


def trained(state: State, r: Round, port: Port) -> tuple[State, Model | None, Aggregate]:
    """The model after the cohort has trained, if enough of it answers, and its changes."""
    if not trains(r.config):
        return state, state.model, Aggregate()
    along: dict[str, Any] = {}
    for name, rider in riders_of(r.config).items():
        along |= rider.along(state.memories[name], r) if rider.along else {}
    own = method_name(r.config)
    talk = method_of(r.config).tune(state.model, state.memories[own], replace(r, along=along))
    state, out = held(state, r, port, talk)
    if out.memory is not None:
        state = replace(state, memories={**state.memories, own: out.memory})
    return state, out.model, out.changes


def learnt(
    state: State, r: Round, port: Port, model: Model, changes: Aggregate, notes: Notes
) -> tuple[State, Round, Notes]:
    """The state with the cohort's mean change, and with what follows from a round that counts."""
    before, name = state.model, method_name(r.config)
    state = replace(state, memories=_summed(state, r, changes))
    state = replace(state, model=model, completed=state.completed + 1)
    for its, rider in riders_of(r.config).items():
        if rider.averaged:
            talk = rider.averaged(before, state.model, state.memories[its], r)
            state, step = held(state, r, port, talk)
            state, r = settled(state, r, its, step)
            notes = notes.joined(step.notes)
    after, undone = method_of(r.config).after(state.model, state.memories[name], r, changes), state
    state, step = held(state, r, port, after)
    notes = notes.joined(replace(step.notes, undone=step.undone or None))
    r = replace(r, pending=r.pending or bool(step.undone))
    if step.undone:
        state = reverted(undone, state)
    else:
        was = state.model
        state, r = settled(state, r, name, step)
        state = rewound(state, r) if state.model is not was else state
    return (*closed(state, r), notes)


def _summed(state: State, r: Round, changes: Aggregate) -> dict[str, Any]:
    memories = dict(state.memories)
    for name, rider in riders_of(r.config).items():
        if rider.summed:
            memories[name] = rider.summed(state.model, memories[name], r, changes)
    return memories


def rewound(state: State, r: Round) -> State:
    """The state after what riders do to a model that training has pruned."""
    model = state.model
    for name, rider in riders_of(r.config).items():
        model = rider.rewound(model, state.memories[name]) if rider.rewound else model
    return replace(state, model=model)


def closed(state: State, r: Round) -> tuple[State, Round]:
    """The state at the end of a round that counts, with what riders remember of it."""
    done = r.due and not r.pending
    r = replace(r, pruned=done)
    state = replace(state, prunings=state.prunings + done, pending=r.pending)
    r = replace(r, prunings=state.prunings)
    for name, rider in riders_of(r.config).items():
        if rider.closing:
            model, memory = rider.closing(state.model, state.memories[name], r)
            state, r = settled(state, r, name, Step(model, memory))
    return state, r


def finished(state: State, r: Round, port: Port) -> tuple[State, Notes]:
    """The state after what riders ask about the result, at the end of the last round."""
    notes, model = Notes(), outcome(state, r.config)
    for name, rider in riders_of(r.config).items():
        if rider.last and r.number == r.config.rounds:
            talk = rider.last(model, state.memories[name], r)
            state, step = held(state, r, port, talk)
            notes = notes.joined(replace(step.notes, undone=step.undone or None))
            if not step.undone:
                state = replace(state, memories={**state.memories, name: step.memory})
    return state, notes


def over(state: State, r: Round) -> bool:
    """Whether the method will prune no more."""
    name = method_name(r.config)
    return method_of(r.config).over(state.memories[name])


def done(state: State, plan: Plan) -> bool:
    """Whether all that the configuration asks for was done, and nothing is due any more."""
    last = max((n for n in range(1, plan.config.rounds + 1) if plan.prunes(n)), default=0)
    riders = riders_of(plan.config).items()
    lacks = any(v.lacks(state.model, state.memories.get(n, Nothing())) for n, v in riders)
    return not (state.pending or lacks) and state.round >= last
