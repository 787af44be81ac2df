"""The server's half of reconstruction: ask for the sums, solve for the weights that stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedprune.methods.method import Rider
from fedprune.methods.tuning import TOO_FEW
from fedprune.protocol.forms import form_of
from fedprune.protocol.port import Ask
from fedprune.redundancy.reconstruction import RECONSTRUCTIONS, before_of, refit
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.structure.layout import Layout, as_rows, from_rows
from fedprune.tensors.named import Tensors


def reconstructed(before: Model, model: Model, memory: Any, r: Round) -> Talk[Step]:
    """The model with its prunable weights fitted to what they were before it was pruned.

    Under ``--calibration sequential``, and always to the outputs of the model before, layer by
    layer, behind those that were fitted already. The notes have the mean over layers of the part of
    their squared error that is left.
    """
    c = r.config
    if c.reconstruct is None or model.masks is before.masks:
        return Step(model, memory)
    kind = RECONSTRUCTIONS[c.reconstruct]
    ordered = kind.ordered or c.calibration == "sequential"
    left: list[float] = []
    for names in in_order(r.layout) if ordered else [r.layout.prunable]:
        found = yield from _fitted(model, before, r, names)
        if found is None:
            return Step(model, memory, undone=TOO_FEW)
        model, errors = found
        left += errors
    return Step(model, memory, Notes(refit=sum(left) / len(left) if left else None))


def in_order(layout: Layout) -> list[tuple[str, ...]]:
    """The prunable tensors in model order, those together that make the units of one group.

    They read the same input: queries, keys and values; the two halves of a gated feed-forward.
    """
    makers = {
        part.tensor: tuple(p.tensor for p in group.parts if p.axis == "row")
        for group in layout.structure.groups
        for part in group.parts
        if part.axis == "row"
    }
    return list(dict.fromkeys(makers.get(name, (name,)) for name in layout.prunable))


def _fitted(
    model: Model, before: Model, r: Round, names: tuple[str, ...]
) -> Talk[tuple[Model, list[float]] | None]:
    """The model with some tensors fitted, and their errors; None, if too few answered."""
    c, layout = r.config, r.layout
    assert c.reconstruct is not None  # else nobody is here
    kind = RECONSTRUCTIONS[c.reconstruct]
    whole = layout.prunable if kind.needs_before else ()
    given = {before_of(n): before.weights[n] for n in whole}
    question = r.question(model, c.reconstruct, names=names, given=given)
    (aggregate,) = yield [Ask(question, r.cohort)]
    if aggregate.total is None or len(aggregate.answered) < c.min_clients:
        return None
    sums = form_of(question, c, layout).named(aggregate.total)
    fresh: Tensors = {}
    left: list[float] = []
    for n in names:
        fresh[n], part = _refit(model, before.weights[n], r, sums, n)
        left += [] if part is None else [part]
    return replace(model, weights={**model.weights, **fresh}), left


def _refit(
    model: Model, before: Tensor, r: Round, sums: Tensors, name: str
) -> tuple[Tensor, float | None]:
    """One tensor's new weights, and the part of its error that is left; None where it had none."""
    assert r.config.reconstruct is not None
    w = as_rows(r.layout, name, model.weights[name].double())
    alive = as_rows(r.layout, name, model.masks[name])
    dense = as_rows(r.layout, name, before.double())
    fit = RECONSTRUCTIONS[r.config.reconstruct].fit(sums, name, dense)
    whole = r.layout if r.layout.origin is None else r.layout.origin.layout
    before_cuts = torch.empty(whole.shapes[name], device="meta")
    fresh = refit(w, alive, fit, columns=as_rows(whole, name, before_cuts).shape[1])
    error = fit.error(w)
    weights = from_rows(r.layout, name, fresh).contiguous().to(model.weights[name].dtype)
    return weights, fit.error(fresh) / error if error else None


RIDER = Rider(
    "what stays after a pruning is fitted to the outputs before it, by least squares "
    "(--reconstruct)",
    wanted=lambda c: c.reconstruct is not None,
    pruned=reconstructed,
)
