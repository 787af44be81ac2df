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

from fedprune.methods.method import Rider
from fedprune.options.refusal import ConfigError
from fedprune.protocol.forms import form_of
from fedprune.protocol.port import Ask
from fedprune.redundancy.dead import UnitsOfLayers, never_active, never_read
from fedprune.redundancy.duplicates import equal_matrices
from fedprune.redundancy.lowrank import Matrix, Ranks, ranks_for_budget, ranks_for_energy
from fedprune.redundancy.merging import merged
from fedprune.redundancy.moments import Inputs, inputs_from, measurable, questions, together
from fedprune.redundancy.spectrum import spectrum_of
from fedprune.redundancy.unit_weights import without_units
from fedprune.server.diagnostics import Notes
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Step, Talk
from fedprune.server.shrink import fitted, shrunk
from fedprune.server.state import Model
from fedprune.structure.cuts import alive_units
from fedprune.structure.edits import Edit, Edits
from fedprune.structure.layer_kinds import is_plain_layer
from fedprune.structure.layers import groups, layers_of
from fedprune.structure.layout import Layout, as_rows
from fedprune.structure.low_rank_layers import Factored, truncated
from fedprune.structure.surgery import ordered
from fedprune.tensors import Masks, Tensors, count_kept, full_masks

Told = dict[str, Any]
"""What a step says about itself in the row of its round."""

BUDGETS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Parts of the kept weights that ``--rank-tolerance`` tries, the smallest first."""


@dataclass(frozen=True)
class Memory:
    """Whether what is redundant was taken out."""

    done: bool = False


NOTHING = "not reduced: too few answered"


def due(memory: Memory, r: Round) -> bool:
    """Whether what is redundant is due to be taken out."""
    c = r.config
    come = c.reduce_round is not None and r.number >= c.reduce_round
    return bool(c.reduce) and come and not memory.done


def reduced(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The model without the redundancy that the configuration names, all of it or none."""
    c, told = r.config, Told()
    told |= {"kept_before": count_kept(model.masks), "parameters": r.layout.parameters}
    inputs, edits = None, model.edits
    if {"dead", "merge"} & set(c.reduce):
        inputs = yield from ask_inputs(model, r)
        if inputs is None:
            return Step(model, memory, undone=NOTHING)
        model, r, units = _without_units(model, r, inputs)
        told |= units
    if "share" in c.reduce:
        model, r, shared = _shared(model, r)
        told |= {"shared": shared}
    if "low-rank" in c.reduce:
        # Units that pruning had emptied leave as well, and are not told.
        changed = model.edits != edits or any(told.get(key) for key in ("merged", "shared"))
        if c.rank_by == "activations" and (inputs is None or changed):
            inputs = yield from ask_inputs(model, r)
            if inputs is None:
                return Step(model, memory, undone=NOTHING)
        moments = inputs if c.rank_by == "activations" else None
        model, r, ranks = yield from _factored(model, r, moments)
        if ranks is None:
            return Step(model, memory, undone=NOTHING)
        told |= ranks
    told |= {"kept_after": count_kept(model.masks), "parameters_after": r.layout.parameters}
    return Step(model, Memory(done=True), Notes(reduced=told))


def ask_inputs(model: Model, r: Round) -> Talk[Inputs | None]:
    """The cohort's second moments at the model's weights; None, if too few answered."""
    plan, pieces = r.plan, []
    assert plan.model is not None  # runs have one
    for names in questions(plan.layout, measurable(plan.model, plan.layout)):
        question = r.question(model, "inputs", names=names)
        (aggregate,) = yield [Ask(question, r.cohort)]
        if aggregate.total is None or len(aggregate.answered) < plan.config.min_clients:
            return None
        sums = form_of(question, plan.config, plan.layout).named(aggregate.total)
        pieces.append(inputs_from(sums, names))
    return together(pieces)


def _without_units(model: Model, r: Round, inputs: Inputs) -> tuple[Model, Round, Told]:
    """Without dead units and duplicates: masked, and cut out."""
    c, layout = r.config, r.layout
    gone, told = _masked_units(model, layout), Told()
    if "dead" in c.reduce:
        dead = _both(never_read(layout, model.weights), never_active(layout, inputs))
        told["dead"] = _counted(dead, gone)
        gone = _both(gone, dead)
    if "merge" in c.reduce:
        model = model.under(without_units(model.masks, layout, gone))
        out = merged(layout, model.weights, inputs, c.reduce_within or 0.0)
        new = {n: out.weights[n] != 0 for n in model.masks if n in out.weights}
        masks = {n: m | new[n] if n in new else m for n, m in model.masks.items()}
        model = replace(model, weights={**model.weights, **out.weights}, masks=masks)
        counts = _counted(out.gone, gone)
        told |= {"merged": counts, "merge_errors": {p: out.errors[p] for p in counts}}
        gone = _both(gone, out.gone)
    model = model.under(without_units(model.masks, layout, gone))
    model, plan = shrunk(model, r.plan)
    return model, replace(r, plan=plan), told


def _both(left: UnitsOfLayers, right: UnitsOfLayers) -> UnitsOfLayers:
    every = {**left, **right}
    return {p: tuple(sorted({*left.get(p, ()), *right.get(p, ())})) for p in every}


def _counted(units: UnitsOfLayers, before: UnitsOfLayers) -> dict[str, int]:
    """How many there are of each group, without those that were gone before."""
    counts = {path: len({*new} - {*before.get(path, ())}) for path, new in units.items()}
    return {path: count for path, count in counts.items() if count}


def _masked_units(model: Model, layout: Layout) -> UnitsOfLayers:
    """Units that pruning has emptied already."""
    alive = {g.path: alive_units(g, model.masks, layout) for g in layout.structure.groups}
    return {path: tuple((~a).nonzero().flatten().tolist()) for path, a in alive.items()}


def _shared(model: Model, r: Round) -> tuple[Model, Round, list[list[Any]]]:
    """Equal matrices under one name; near ones become the mean of those that share it."""
    layout = r.layout
    paths = {name: path for path, name in _paths(r.plan, layout.prunable).items()}
    found = [
        (name, like, apart)
        for name, like, apart in equal_matrices(layout, model.weights, r.config.reduce_within or 0)
        if name in paths and like in paths
    ]
    if not found:
        return model, r, []
    weights, masks = dict(model.weights), dict(model.masks)
    for like in dict.fromkeys(like for _, like, _ in found):
        alike = [like, *(n for n, other, _ in found if other == like)]
        mean = torch.stack([weights[n].double() for n in alike]).mean(0)
        weights[like] = mean.to(weights[like].dtype)
        masks[like] = torch.stack([masks[n] for n in alike]).any(0)
    edits = (*model.edits, *(Edit("share", paths[n], like=paths[like]) for n, like, _ in found))
    model, r = _edited(replace(model, weights=weights, masks=masks), r, edits, {})
    return model, r, [list(each) for each in found]


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
    model: Model, r: Round, moments: Inputs | None
) -> Talk[tuple[Model, Round, Told | None]]:
    """Factors in place of matrices, of ranks as the configuration asks; None: too few answered."""
    c, paths = r.config, _paths(r.plan, r.layout.prunable)
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
    model: Model,
    r: Round,
    paths: Mapping[str, str],
    ranks: Ranks,
    moments: Inputs | None,
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
    return _edited(model, r, (*model.edits, *edits), fresh)


def _edited(model: Model, r: Round, edits: Edits, fresh: Tensors) -> tuple[Model, Round]:
    """The model in its shapes after these edits, with new tensors where there are."""
    plan = fitted(r.plan, ordered(edits))
    shapes = plan.layout.shapes
    values = {**model.weights, **fresh}
    weights = {n: values[n].reshape(shape).contiguous() for n, shape in shapes.items()}
    masks: Masks = full_masks(weights, plan.layout.prunable)
    masks |= {n: model.masks[n] for n in masks if n in model.masks}
    return Model(weights, masks, plan.edits).under(masks), replace(r, plan=plan)


RIDER = Rider(
    "dead units, duplicates, shared and low-rank matrices taken out in a round (--reduce)",
    wanted=lambda c: bool(c.reduce),
    memory=Memory,
    init=lambda *_: Memory(),
    due=due,
    thinning=reduced,
    lacks=lambda _, memory: memory != Memory(done=True),
)
