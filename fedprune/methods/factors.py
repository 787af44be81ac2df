"""Matrices replaced by two factors, of a rank by energy, by budget or by the loss on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedprune.options.refusal import ConfigError
from fedprune.protocol.port import Ask
from fedprune.redundancy.lowrank import Matrix, Ranks, ranks_for_budget, ranks_for_energy
from fedprune.redundancy.moments import Inputs
from fedprune.redundancy.spectrum import spectrum_of
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Talk
from fedprune.server.shrink import fitted
from fedprune.server.state import Model
from fedprune.streaming.packed import masks_for
from fedprune.structure.edits import Edit, Edits
from fedprune.structure.layer_kinds import is_plain_layer
from fedprune.structure.layers import groups, layers_of
from fedprune.structure.layout import Layout, as_rows
from fedprune.structure.low_rank_layers import Factored, truncated
from fedprune.structure.surgery import ordered
from fedprune.tensors.lazy import joined_to, shapes_of, some_of
from fedprune.tensors.named import Tensors

Told = dict[str, Any]  # What a step says about itself in the row of its round


BUDGETS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Parts of the kept weights that ``--rank-tolerance`` tries, the smallest first."""


def replaceable(plan: Plan, names: Sequence[str]) -> dict[str, str]:
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


def in_factors(
    model: Model, r: Round, moments: Inputs | None
) -> Talk[tuple[Model, Round, Told | None]]:
    """Factors in place of matrices, of ranks as the configuration asks; None: too few answered."""
    c, paths = r.config, replaceable(r.plan, r.layout.prunable)
    shared = {e.like for e in model.edits if e.kind == "share"}
    paths = {path: name for path, name in paths.items() if path not in shared}
    matrices = {name: _matrix(name, model, r.layout, moments) for name in paths.values()}
    if c.rank_tolerance is not None:
        return (yield from _by_validation(model, r, paths, matrices, moments))
    if c.rank_budget is not None:
        ranks = ranks_for_budget(matrices, c.rank_budget)
    else:
        assert c.rank_energy is not None  # one of the three is filled in
        ranks = ranks_for_energy(matrices, c.rank_energy)
    model, r = _with_factors(model, r, paths, ranks, moments)
    return model, r, _ranks_told(ranks, matrices)


def _matrix(name: str, model: Model, layout: Layout, moments: Inputs | None) -> Matrix:
    rows = as_rows(layout, name, model.weights[name])
    seen = _seen(moments, name)
    kept = int(model.masks[name].sum())
    return Matrix(spectrum_of(rows, seen), (rows.shape[0], rows.shape[1]), kept)


def _seen(moments: Inputs | None, name: str) -> Tensor | None:
    """The second moments of a layer's inputs, where they were measured."""
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
    model: Model,
    r: Round,
    paths: Mapping[str, str],
    matrices: Mapping[str, Matrix],
    moments: Inputs | None,
) -> Talk[tuple[Model, Round, Told | None]]:
    """The smallest budget whose loss on the cohort's validation parts stays within tolerance.

    All models are measured by the same clients. None instead of what was done, if too few answered
    or others than for the model before.
    """
    tolerance = r.config.rank_tolerance
    assert tolerance is not None
    before, judges = yield from _loss(model, r)
    tried: list[list[float]] = []
    for budget in BUDGETS if judges else ():
        ranks = ranks_for_budget(matrices, budget)
        candidate, its = _with_factors(model, r, paths, ranks, moments)
        loss, answered = yield from _loss(candidate, replace(its, cohort=judges))
        if answered != judges:
            return model, r, None
        tried.append([budget, loss])
        if loss <= before * (1.0 + tolerance):
            told = _ranks_told(ranks, matrices) | {"loss_before": before, "tried": tried}
            return candidate, its, told
    told = {"ranks": {}, "loss_before": before, "tried": tried}
    return model, r, told if judges else None


def _loss(model: Model, r: Round) -> Talk[tuple[float, tuple[int, ...]]]:
    """The mean loss on validation, and whose; nobody's if too few answered or have no labels."""
    (aggregate,) = yield [Ask(r.question(model, "evaluate", part="validation"), r.cohort)]
    count, judges = aggregate.totals.get("count", 0.0), tuple(sorted(aggregate.answered))
    if not count or len(judges) < r.config.min_clients:
        return 0.0, ()
    return aggregate.totals["loss"] / count, judges


def _with_factors(
    model: Model, r: Round, paths: Mapping[str, str], ranks: Ranks, moments: Inputs | None
) -> tuple[Model, Round]:
    """The model with the matrices named as factors; their masks keep everything."""
    chosen = {path: name for path, name in paths.items() if name in ranks}
    if not chosen:
        return model, r
    edits = [Edit("rank", path, (ranks[name],)) for path, name in chosen.items()]
    fresh: Tensors = {}
    for path, name in chosen.items():
        rows = as_rows(r.layout, name, model.weights[name])
        seen = _seen(moments, name)
        left, right = truncated(rows, ranks[name], seen)
        dtype = model.weights[name].dtype
        fresh |= {f"{path}.0.weight": right.to(dtype), f"{path}.1.weight": left.to(dtype)}
    return edited(model, r, (*model.edits, *edits), fresh)


def edited(model: Model, r: Round, edits: Edits, fresh: Tensors) -> tuple[Model, Round]:
    """The model in its shapes after these edits, with new tensors where there are."""
    plan = fitted(r.plan, ordered(edits))
    shapes, values = plan.layout.shapes, joined_to(model.weights, fresh)
    if shapes_of(some_of(values, shapes)) == shapes:
        weights = some_of(values, shapes)
    else:
        weights = {n: values[n].reshape(shape).contiguous() for n, shape in shapes.items()}
    kept = [n for n in plan.layout.prunable if n in model.masks]
    masks = joined_to(masks_for(weights, plan.layout.prunable), some_of(model.masks, kept))
    return Model(weights, masks, plan.edits).under(masks), replace(r, plan=plan)
