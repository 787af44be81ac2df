"""The server's half of reconstruction: ask for the sums, solve for the weights that stay."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedprune.protocol.forms import form_of
from fedprune.redundancy.reconstruction import RECONSTRUCTIONS, before_of, refit
from fedprune.server.ask import Bench
from fedprune.server.state import Plan, State
from fedprune.structure.layout import Layout, as_rows, from_rows
from fedprune.tensors import Tensors


def reconstructed(state: State, before: State, bench: Bench) -> tuple[State, float | None]:
    """The state with its prunable weights fitted to what they were, where that is wanted.

    Under ``--calibration sequential``, and always to the outputs of the model before, layer by
    layer, behind those that were fitted already. If too few answer, the state owes its pruning.

    Args:
        state: just pruned.
        before: the same before it was pruned.
        bench: asks the cohort.

    Returns:
        The state, and the mean over layers of the part of their squared error that is left; None
        where nothing was fitted.
    """
    plan = bench.plan
    if plan.config.reconstruct is None or state.masks is before.masks:
        return state, None
    kind = RECONSTRUCTIONS[plan.config.reconstruct]
    ordered = kind.ordered or plan.config.calibration == "sequential"
    left: list[float] = []
    for names in in_order(plan.layout) if ordered else [plan.layout.prunable]:
        state, errors = _fitted(state, before, bench, names)
        if state.owed:
            return state, None
        left += errors
    return state, sum(left) / len(left) if left else None


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
    state: State, before: State, bench: Bench, names: tuple[str, ...]
) -> tuple[State, list[float]]:
    c, plan = bench.plan.config, bench.plan
    assert c.reconstruct is not None  # else nobody is here
    kind = RECONSTRUCTIONS[c.reconstruct]
    whole = plan.layout.prunable if kind.needs_before else ()
    given = {before_of(n): before.weights[n] for n in whole}
    question = bench.question(state, c.reconstruct, names=names, given=given)
    state, aggregate = bench.put(state, question, bench.cohort)
    if aggregate.total is None or len(aggregate.answered) < c.min_clients:
        return replace(state, owed=True), []
    sums = form_of(question, c, plan.layout).named(aggregate.total)
    fresh: Tensors = {}
    left: list[float] = []
    for n in names:
        fresh[n], part = _refit(state, before.weights[n], plan, sums, n)
        left += [] if part is None else [part]
    return replace(state, weights={**state.weights, **fresh}), left


def _refit(
    state: State, before: Tensor, plan: Plan, sums: Tensors, name: str
) -> tuple[Tensor, float | None]:
    """One tensor's new weights, and the part of its error that is left; None where it had none."""
    assert plan.config.reconstruct is not None
    w = as_rows(plan.layout, name, state.weights[name].double())
    alive = as_rows(plan.layout, name, state.masks[name])
    dense = as_rows(plan.layout, name, before.double())
    fit = RECONSTRUCTIONS[plan.config.reconstruct].fit(sums, name, dense)
    whole = plan.layout if plan.layout.origin is None else plan.layout.origin.layout
    before_cuts = torch.empty(whole.shapes[name], device="meta")
    fresh = refit(w, alive, fit, columns=as_rows(whole, name, before_cuts).shape[1])
    error = fit.error(w)
    weights = from_rows(plan.layout, name, fresh).contiguous().float()
    return weights, fit.error(fresh) / error if error else None
