"""Physical shrinking: what a mask has emptied leaves the model, for the server and for clients."""

from __future__ import annotations

from dataclasses import replace

from fedprune.protocol.models import shaped
from fedprune.server.state import Plan, State
from fedprune.structure.cuts import edits_of
from fedprune.structure.edits import Edits
from fedprune.structure.flops import positions_of
from fedprune.tasks.catalog import tasks_of
from fedprune.tensors import Tensors, count_kept


def kept_small(state: State, plan: Plan) -> tuple[State, Plan]:
    """The state without what its mask has emptied, where ``--shrink every`` asks for that."""
    return shrunk(state, plan) if plan.config.shrink == "every" else (state, plan)


def shrunk(state: State, plan: Plan) -> tuple[State, Plan]:
    """The state of the model without the units that are wholly masked, and the plan that fits it.

    Nothing that is left changes: the new tensors hold the same numbers. Once matrices are shared
    nothing more is cut: a unit of one would be one of another. A model whose mask keeps nothing at
    all (a threshold above every score, with ``--floor 0``) is not cut: no layer would be left.
    """
    if any(edit.kind == "share" for edit in state.edits) or not count_kept(state.masks):
        return state, plan
    edits = edits_of(state.masks, plan.layout, state.edits)
    return (state, plan) if edits == state.edits else cut_to(state, plan, edits)


def cut_to(state: State, plan: Plan, edits: Edits) -> tuple[State, Plan]:
    """The state and the plan after further cuts.

    Args:
        state: in the shapes of the plan's layout.
        plan: as it fits the state.
        edits: all of them, those that the state has included.
    """
    smaller, average = fitted(plan, edits), state.moving

    def moved(tensors: Tensors) -> Tensors:
        left = smaller.layout.from_origin(plan.layout.in_origin(tensors))
        return {name: left[name] for name in tensors if name in left}

    return replace(
        state,
        edits=edits,
        weights=moved(state.weights),
        masks=moved(state.masks),
        early=None if state.early is None else moved(state.early),
        moving=None if average is None else replace(average, weights=moved(average.weights)),
    ), smaller


def fitted(plan: Plan, edits: Edits) -> Plan:
    """The plan of a model with these edits."""
    if edits == plan.edits:
        return plan
    model, layout = shaped(plan.config, edits)
    task = tasks_of(plan.config.plugin)[plan.config.task]
    positions = {}
    if plan.positions and plan.dummy is not None:
        positions = positions_of(model, layout, plan.dummy, task.loss)
    return replace(plan, layout=layout, model=model, positions=positions, edits=edits)
