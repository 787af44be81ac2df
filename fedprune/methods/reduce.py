"""Taking redundancy out of the model in the middle of a run: the server's half.

In its round the cohort sums the second moments of what goes into the layers; then dead units and
duplicates are masked and cut out, equal matrices shared, and matrices replaced by factors, whatever
``--reduce`` names, in that order. The rounds that follow tune, prune and send what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedprune.methods.global_mask import pruned
from fedprune.options.refusal import ConfigError
from fedprune.protocol.forms import form_of
from fedprune.redundancy.dead import Units, never_active, never_read
from fedprune.redundancy.duplicates import equal_matrices
from fedprune.redundancy.lowrank import Matrix, Ranks, ranks_for_budget, ranks_for_energy
from fedprune.redundancy.merging import merged
from fedprune.redundancy.moments import Inputs, inputs_from, measurable, questions, together
from fedprune.redundancy.spectrum import spectrum_of
from fedprune.redundancy.unit_weights import without_units
from fedprune.server.ask import Bench
from fedprune.server.shrink import fitted, shrunk
from fedprune.server.state import Plan, State, undone
from fedprune.structure.cuts import alive_units
from fedprune.structure.edits import Edit, Edits
from fedprune.structure.layer_kinds import is_plain_layer
from fedprune.structure.layers import groups, layers_of
from fedprune.structure.layout import as_rows
from fedprune.structure.low_rank_layers import Factored, truncated
from fedprune.structure.surgery import ordered
from fedprune.tensors import Masks, Tensors, count_kept, full_masks, masked

Told = dict[str, Any]
"""What a step says about itself in the row of its round."""

BUDGETS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Parts of the kept weights that ``--rank-tolerance`` tries, the smallest first."""


@dataclass(frozen=True)
class Reduced:
    """A step's result.

    Attributes:
        state: smaller, in the shapes of `plan`.
        plan: fits it.
        told: for the row; None where too few clients answered: then state and plan are not whole.
    """

    state: State
    plan: Plan
    told: Told | None


def reduced(state: State, bench: Bench) -> Reduced:
    """The state without the redundancy that the configuration names."""
    c, plan = bench.plan.config, bench.plan
    told: Told = {"kept_before": count_kept(state.masks), "parameters": plan.layout.parameters}
    inputs, edits = None, state.edits
    if {"dead", "merge"} & set(c.reduce):
        state, inputs = ask_inputs(state, bench)
        if inputs is None:
            return Reduced(state, plan, None)
        state, plan, units = _without_units(state, plan, inputs)
        told |= units
    if "share" in c.reduce:
        state, plan, shared = _shared(state, plan)
        told |= {"shared": shared}
    if "low-rank" in c.reduce:
        bench = replace(bench, plan=plan)
        # Units that pruning had emptied leave as well, and are not told.
        changed = state.edits != edits or any(told.get(key) for key in ("merged", "shared"))
        if c.rank_by == "activations" and (inputs is None or changed):
            state, inputs = ask_inputs(state, bench)
            if inputs is None:
                return Reduced(state, plan, None)
        moments = inputs if c.rank_by == "activations" else None
        state, plan, ranks = _factored(state, bench, moments)
        if ranks is None:
            return Reduced(state, plan, None)
        told |= ranks
    told |= {"kept_after": count_kept(state.masks), "parameters_after": plan.layout.parameters}
    return Reduced(state, plan, told)


def ask_inputs(state: State, bench: Bench) -> tuple[State, Inputs | None]:
    """The cohort's second moments at the state's weights; None, if too few answered."""
    plan, pieces = bench.plan, []
    assert plan.model is not None  # runs have one
    for names in questions(plan.layout, measurable(plan.model, plan.layout)):
        question = bench.question(state, "inputs", names=names)
        state, aggregate = bench.put(state, question, bench.cohort)
        if aggregate.total is None or len(aggregate.answered) < plan.config.min_clients:
            return state, None
        sums = form_of(question, plan.config, plan.layout).named(aggregate.total)
        pieces.append(inputs_from(sums, names))
    return state, together(pieces)


def _without_units(state: State, plan: Plan, inputs: Inputs) -> tuple[State, Plan, Told]:
    """Without dead units and duplicates: masked, and cut out."""
    c, layout = plan.config, plan.layout
    gone, told = _masked_units(state, plan), Told()
    if "dead" in c.reduce:
        dead = _both(never_read(layout, state.weights), never_active(layout, inputs))
        told["dead"] = _counted(dead, gone)
        gone = _both(gone, dead)
    if "merge" in c.reduce:
        state = pruned(state, without_units(state.masks, layout, gone))
        out = merged(layout, state.weights, inputs, c.reduce_within or 0.0)
        new = {n: out.weights[n] != 0 for n in state.masks if n in out.weights}
        masks = {n: m | new[n] if n in new else m for n, m in state.masks.items()}
        state = replace(state, weights={**state.weights, **out.weights}, masks=masks)
        counts = _counted(out.gone, gone)
        told |= {"merged": counts, "merge_errors": {p: out.errors[p] for p in counts}}
        gone = _both(gone, out.gone)
    state = pruned(state, without_units(state.masks, layout, gone))
    state, plan = shrunk(state, plan)
    return state, plan, told


def _both(left: Units, right: Units) -> Units:
    every = {**left, **right}
    return {p: tuple(sorted({*left.get(p, ()), *right.get(p, ())})) for p in every}


def _counted(units: Units, before: Units) -> dict[str, int]:
    """How many there are of each group, without those that were gone before."""
    counts = {path: len({*new} - {*before.get(path, ())}) for path, new in units.items()}
    return {path: count for path, count in counts.items() if count}


def _masked_units(state: State, plan: Plan) -> Units:
    """Units that pruning has emptied already."""
    layout = plan.layout
    alive = {g.path: alive_units(g, state.masks, layout) for g in layout.structure.groups}
    return {path: tuple((~a).nonzero().flatten().tolist()) for path, a in alive.items()}


def _shared(state: State, plan: Plan) -> tuple[State, Plan, list[list[Any]]]:
    """Equal matrices under one name; near ones become the mean of those that share it."""
    c, layout = plan.config, plan.layout
    paths = {name: path for path, name in _paths(plan, layout.prunable).items()}
    found = [
        (name, like, apart)
        for name, like, apart in equal_matrices(layout, state.weights, c.reduce_within or 0.0)
        if name in paths and like in paths
    ]
    if not found:
        return state, plan, []
    weights, masks = dict(state.weights), dict(state.masks)
    for like in dict.fromkeys(like for _, like, _ in found):
        alike = [like, *(n for n, other, _ in found if other == like)]
        mean = torch.stack([weights[n].double() for n in alike]).mean(0)
        weights[like] = mean.to(weights[like].dtype)
        masks[like] = torch.stack([masks[n] for n in alike]).any(0)
    edits = (*state.edits, *(Edit("share", paths[n], like=paths[like]) for n, like, _ in found))
    state, plan = _moved(replace(state, weights=weights, masks=masks), plan, edits, {})
    return state, plan, [list(each) for each in found]


def _paths(plan: Plan, names: Sequence[str]) -> dict[str, str]:
    """Paths of the layers that could be replaced, and their weights: of one layer each.

    Factors are left alone, grouped convolutions, and subclasses that compute something else.
    """
    assert plan.model is not None  # runs have one
    modules = dict(plan.model.named_modules())
    path_of = {id(module): path for path, module in modules.items()}
    found = {}
    for name, layers in layers_of(plan.model, names).items():
        path = path_of[id(layers[0])] if len(layers) == 1 else ""
        parent = modules.get(path.rpartition(".")[0])
        alone = path and groups(layers[0]) == 1 and not isinstance(parent, Factored)
        if alone and is_plain_layer(layers[0]):
            found[path] = name
    return found


def _factored(
    state: State, bench: Bench, moments: Inputs | None
) -> tuple[State, Plan, Told | None]:
    """Factors in place of matrices, of ranks as the configuration asks; None: too few answered."""
    plan = bench.plan
    c, paths = plan.config, _paths(plan, plan.layout.prunable)
    shared = {e.like for e in state.edits if e.kind == "share"}
    paths = {path: name for path, name in paths.items() if path not in shared}
    matrices = {name: _matrix(name, state, plan, moments) for name in paths.values()}
    if c.rank_tolerance is not None:
        return _by_validation(state, bench, paths, matrices, moments)
    if c.rank_budget is not None:
        ranks = ranks_for_budget(matrices, c.rank_budget)
    else:
        assert c.rank_energy is not None  # one of the three is filled in
        ranks = ranks_for_energy(matrices, c.rank_energy)
    state, plan = _with_factors(state, plan, paths, ranks, moments)
    return state, plan, _ranks_told(ranks, matrices)


def _matrix(name: str, state: State, plan: Plan, moments: Inputs | None) -> Matrix:
    rows = as_rows(plan.layout, name, state.weights[name])
    seen = _seen(moments, name)
    kept = int(state.masks[name].sum())
    return Matrix(spectrum_of(rows, seen), (rows.shape[0], rows.shape[1]), kept)


def _seen(moments: Inputs | None, name: str) -> Tensor | None:
    """The second moments of a layer's inputs, where they were measured.

    Raises:
        ConfigError: they were, and no row went through the layer.
    """
    if moments is not None and moments.rows.get(name) == 0:
        raise ConfigError(
            f"rank-by='activations': no row went through the layer of {name} at any client asked; "
            f"allowed: --exclude {name}, a larger cohort, or weights"
        )
    return moments.moments(name) if moments is not None and name in moments.products else None


def _ranks_told(ranks: Ranks, matrices: Mapping[str, Matrix]) -> Told:
    """Ranks, and the part of W X (or of W) that is lost: ‖(W - W')X‖_F / ‖W X‖_F."""
    energies = {n: float(matrices[n].spectrum.energies()[r - 1]) for n, r in ranks.items()}
    errors = {n: max(0.0, 1.0 - held) ** 0.5 for n, held in energies.items()}
    return {"ranks": ranks, "rank_errors": errors}


def _by_validation(
    state: State,
    bench: Bench,
    paths: Mapping[str, str],
    matrices: Mapping[str, Matrix],
    moments: Inputs | None,
) -> tuple[State, Plan, Told | None]:
    """The smallest budget whose loss on the cohort's validation parts stays within tolerance.

    All models are measured by the same clients. A model that is not taken leaves nothing in the
    state but what asking about it changed. None instead of what was done, if too few answered or
    others than for the model before.
    """
    c = bench.plan.config
    assert c.rank_tolerance is not None
    state, before, judges = _loss(state, bench)
    tried: list[list[float]] = []
    for budget in BUDGETS if judges else ():
        ranks = ranks_for_budget(matrices, budget)
        candidate, plan = _with_factors(state, bench.plan, paths, ranks, moments)
        candidate, loss, answered = _loss(candidate, replace(bench, plan=plan, cohort=judges))
        if answered != judges:
            return undone(state, candidate), bench.plan, None
        tried.append([budget, loss])
        if loss <= before * (1.0 + c.rank_tolerance):
            told = _ranks_told(ranks, matrices) | {"loss_before": before, "tried": tried}
            return candidate, plan, told
        state = undone(state, candidate)
    told = {"ranks": {}, "loss_before": before, "tried": tried}
    return state, bench.plan, told if judges else None


def _loss(state: State, bench: Bench) -> tuple[State, float, tuple[int, ...]]:
    """The mean loss on validation, and whose; nobody's if too few answered or have no labels."""
    question = bench.question(state, "evaluate", part="validation")
    state, aggregate = bench.put(state, question, bench.cohort)
    count, judges = aggregate.totals.get("count", 0.0), tuple(sorted(aggregate.answered))
    if not count or len(judges) < bench.plan.config.min_clients:
        return state, 0.0, ()
    return state, aggregate.totals["loss"] / count, judges


def _with_factors(
    state: State,
    plan: Plan,
    paths: Mapping[str, str],
    ranks: Ranks,
    moments: Inputs | None,
) -> tuple[State, Plan]:
    """The state with the matrices named as factors; their masks keep everything."""
    chosen = {path: name for path, name in paths.items() if name in ranks}
    if not chosen:
        return state, plan
    edits = [Edit("rank", path, (ranks[name],)) for path, name in chosen.items()]
    fresh: Tensors = {}
    for path, name in chosen.items():
        rows = as_rows(plan.layout, name, state.weights[name])
        seen = _seen(moments, name)
        left, right = truncated(rows, ranks[name], seen)
        dtype = state.weights[name].dtype
        fresh |= {f"{path}.0.weight": right.to(dtype), f"{path}.1.weight": left.to(dtype)}
    return _moved(state, plan, (*state.edits, *edits), fresh)


def _moved(state: State, plan: Plan, edits: Edits, fresh: Tensors) -> tuple[State, Plan]:
    """The state in the shapes of the model with these edits, with new tensors where there are."""
    plan = fitted(plan, ordered(edits))
    shapes = plan.layout.shapes
    values = {**state.weights, **fresh}
    weights = {n: values[n].reshape(shape).contiguous() for n, shape in shapes.items()}
    masks: Masks = full_masks(weights, plan.layout.prunable)
    masks |= {n: state.masks[n] for n in masks if n in state.masks}
    # What was kept of earlier rounds is of other shapes: the rules leave nothing that goes back to
    # it, and a running average begins anew.
    state = replace(state, edits=plan.edits, weights=masked(weights, masks), masks=masks)
    return replace(state, early=None, moving=None), plan
