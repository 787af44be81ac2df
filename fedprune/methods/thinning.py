"""The smaller model before training: pruned by method and riders, without what is redundant."""

from __future__ import annotations

from dataclasses import replace

from fedprune.methods.acting import held, settled
from fedprune.methods.catalog import method_name, method_of, riders_of
from fedprune.methods.measuring import measure
from fedprune.protocol.port import Port
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Talk
from fedprune.server.spoilt import Spoilt
from fedprune.server.state import State, reverted


def thinned(state: State, r: Round, port: Port) -> tuple[State, Round, Notes]:
    """The smaller state before training, where that is due: pruned, and without redundancy.

    Each of both is done whole or, if too few answer, not at all; then it is due in the next round.
    """
    notes = Notes()
    if r.due:
        state, r, notes = pruned(state, r, port)
    for name, rider in riders_of(r.config).items():
        if rider.thinning and rider.due(state.memories[name], r):
            ready = kept(state, r)
            talk = rider.thinning(ready.model, ready.memories[name], r)
            ready, step = held(ready, r, port, talk)
            notes = notes.joined(replace(step.notes, undone=step.undone or None))
            if step.undone:
                state = reverted(state, ready)
            else:
                state, r = settled(ready, r, name, step)
    return state, r, notes


def pruned(state: State, r: Round, port: Port) -> tuple[State, Round, Notes]:
    """The state pruned before training, if the method does that and enough clients answer."""
    ready = state
    if not state.prunings:
        ready, totals = measure(state, r, port, "test")
        ready = replace(ready, dense_at_pruning=totals)
    ready = kept(ready, r)
    ready, out = held(ready, r, port, _pruning(ready, r))
    if isinstance(out, Spoilt):
        ready = replace(ready, book=ready.book.with_failures(out.failures))
        out = f"not pruned: {out}"
    if isinstance(out, str):
        return reverted(state, ready), replace(r, pending=True), Notes(undone=out)
    after, r, notes = out
    return replace(after, book=ready.book), r, notes


def kept(state: State, r: Round) -> State:
    """The state with what riders remember of a model that is about to be pruned or reduced."""
    memories = dict(state.memories)
    for name, rider in riders_of(r.config).items():
        if rider.keep:
            memories[name] = rider.keep(state.model, memories[name], r)
    return replace(state, memories=memories)


def _pruning(state: State, r: Round) -> Talk[tuple[State, Round, Notes] | str | Spoilt]:
    """The pruned state, as the method does it and then the riders; or why there is none."""
    name, old = method_name(r.config), state.model
    try:
        step = yield from method_of(r.config).before(old, state.memories[name], r)
    except Spoilt as spoilt:
        return spoilt
    if step.undone:
        return step.undone
    unchanged = step.model is old
    state, r = settled(state, r, name, step)
    notes = step.notes
    for name, rider in riders_of(r.config).items():
        if rider.pruned and not unchanged:
            step = yield from rider.pruned(old, state.model, state.memories[name], r)
            if step.undone:
                return step.undone
            state, r = settled(state, r, name, step)
            notes = notes.joined(step.notes)
    return state, r, notes
