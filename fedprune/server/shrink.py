"""Physical shrinking: what a mask has emptied leaves the model, for the server and for clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from fedprune.protocol.held_weights import base_at
from fedprune.protocol.models import shaped
from fedprune.server.plan import Plan
from fedprune.server.state import Model
from fedprune.server.work import passes_for
from fedprune.structure.cuts import edits_of
from fedprune.structure.edits import Edits
from fedprune.structure.flops import positions_of
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tensors.lazy import some_of
from fedprune.tensors.models import empty_out
from fedprune.tensors.named import Tensors, count_kept


def shrunk(model: Model, plan: Plan) -> tuple[Model, Plan]:
    """The model without the units that are wholly masked, and the plan that fits it.

    Nothing that is left changes: the new tensors hold the same numbers. Once matrices are shared
    nothing more is cut: a unit of one would be one of another. A model whose mask keeps nothing at
    all (a threshold above every score, with ``--floor 0``) is not cut: no layer would be left.
    """
    if any(edit.kind == "share" for edit in model.edits) or not count_kept(model.masks):
        return model, plan
    edits = edits_of(model.masks, plan.layout, model.edits)
    return (model, plan) if edits == model.edits else cut_to(model, plan, edits)


def cut_to(model: Model, plan: Plan, edits: Edits) -> tuple[Model, Plan]:
    """The model, shaped as its plan says, and the plan after further cuts; `edits`: all of them."""
    smaller = fitted(plan, edits)
    moved = _moving(plan.layout, smaller.layout)
    return Model(moved(model.weights), moved(model.masks), edits), smaller


def _moving(old: Layout, new: Layout) -> Callable[[Tensors], Tensors]:
    def moved(tensors: Tensors) -> Tensors:
        left = new.from_origin(old.in_origin(tensors))
        return some_of(left, [name for name in tensors if name in left])

    return moved


def carried(memory: Any, old: Plan, new: Plan) -> Any:
    """A memory after the model was edited: what it holds of the model is cut as the model was.

    That is every dictionary of tensors under the model's names and in its shapes, wherever in the
    memory it lies.

    Raises:
        Reshaped: the model's matrices were replaced or it got biases, and the memory holds tensors
            of it as it was.
    """
    if old.edits == new.edits:
        return memory
    fresh = {e.kind for e in new.edits if e not in old.edits}
    replaced = bool(fresh & {"rank", "slice", "bias", "share"})

    def change(tensors: Tensors) -> Tensors:
        shapes = old.layout.shapes
        if not all(n in shapes and t.shape == shapes[n] for n, t in tensors.items()):
            return tensors
        if replaced:
            raise Reshaped
        return _moving(old.layout, new.layout)(tensors)

    return _changed(memory, change)


class Reshaped(ValueError):
    """A memory holds what the edited model has no place for."""


def _changed(value: Any, change: Callable[[Tensors], Tensors]) -> Any:
    if isinstance(value, Mapping) and value:
        if all(isinstance(v, Tensor) for v in value.values()):
            return change(dict(value))
        return {key: _changed(v, change) for key, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_changed(v, change) for v in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _changed(getattr(value, f.name), change) for f in fields(value)}
        )
    return value


def fitted(plan: Plan, edits: Edits) -> Plan:
    """The plan of a model with these edits; the models of both plans hold no values."""
    if edits == plan.edits:
        return plan
    if plan.model is not None:
        empty_out(plan.model)  # of a large model one more is one too many
    model, layout = shaped(plan.config, edits)
    task = tasks_of(plan.config.plugin)[plan.config.task]
    positions = {}
    if plan.positions and plan.dummy is not None:
        positions = positions_of(model, layout, plan.dummy, task.loss)
    passes = passes_for(plan.config, model, plan.dummy, positions)
    empty_out(model)
    held = base_at(plan.base, layout)
    now = replace(plan, layout=layout, model=model, edits=edits)
    return replace(now, positions=positions, passes=passes, base=held)
