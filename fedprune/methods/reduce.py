"""Taking redundancy out of the model in the middle of a run: the server's half.

In its round the cohort sums the second moments of what goes into the layers; then dead units and
duplicates are masked and cut out, equal matrices shared, channels between layers left out, and
matrices replaced by factors, whatever ``--reduce`` names, in that order. The rounds that follow
tune, prune and send what is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from fedprune.methods.factors import Told, edited, in_factors, replaceable
from fedprune.methods.method import Rider
from fedprune.options.refusal import ConfigError
from fedprune.protocol.forms import form_of
from fedprune.protocol.port import Ask
from fedprune.redundancy.dead import UnitsOfLayers, never_active, never_read
from fedprune.redundancy.duplicates import equal_matrices
from fedprune.redundancy.merging import merged
from fedprune.redundancy.moments import Inputs, inputs_from, measurable, questions, together
from fedprune.redundancy.principal import in_basis, principal
from fedprune.redundancy.unit_weights import without_units
from fedprune.scores.inputs import inputs_of
from fedprune.server.diagnostics import Notes
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Step, Talk
from fedprune.server.shrink import fitted, shrunk
from fedprune.server.state import Model
from fedprune.structure.cuts import alive_units
from fedprune.structure.edits import Edit
from fedprune.structure.layout import Layout
from fedprune.structure.slicing import residual_path, width_left
from fedprune.tensors.named import all_true, count_kept


@dataclass(frozen=True)
class Memory:
    """Whether what is redundant was taken out."""

    done: bool = False


def _begun(model: Model, r: Round) -> Memory:
    """Nothing was taken out yet.

    Raises:
        ConfigError: the model that a run begins with cannot be sliced, and is to be.
    """
    if "slice" in r.config.reduce:
        rotatable(model, r.plan)
    return Memory()


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
    if "slice" in c.reduce:
        narrower = yield from sliced(model, r)
        if narrower is None:
            return Step(model, memory, undone=NOTHING)
        model, r, channels = narrower
        told |= channels
    if "low-rank" in c.reduce:
        # Units that pruning had emptied leave as well, and are not told.
        changed = model.edits != edits or any(told.get(key) for key in ("merged", "shared"))
        if c.rank_by == "activations" and (inputs is None or changed):
            inputs = yield from ask_inputs(model, r)
            if inputs is None:
                return Step(model, memory, undone=NOTHING)
        moments = inputs if c.rank_by == "activations" else None
        model, r, ranks = yield from in_factors(model, r, moments)
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
    paths = {name: path for path, name in replaceable(r.plan, layout.prunable).items()}
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
    model, r = edited(replace(model, weights=weights, masks=masks), r, edits, {})
    return model, r, [list(each) for each in found]


RIDER = Rider(
    "dead units, duplicates, channels between layers, low-rank matrices: taken out (--reduce)",
    wanted=lambda c: bool(c.reduce),
    memory=Memory,
    init=_begun,
    due=due,
    thinning=reduced,
    lacks=lambda _, memory: memory != Memory(done=True),
)


def sliced(model: Model, r: Round) -> Talk[tuple[Model, Round, Told] | None]:
    """The narrower model with its round, and what the directions left hold; None: too few answered.

    Units that pruning has emptied are cut out first.
    """
    model, plan = rotatable(model, r.plan)
    r = replace(r, plan=plan)
    assert plan.model is not None  # runs have one
    path = residual_path(plan.model)
    question = r.question(model, "signals", names=(path.table,))
    (aggregate,) = yield [Ask(question, r.cohort)]
    if aggregate.total is None or len(aggregate.answered) < r.config.min_clients:
        return None
    sums = form_of(question, plan.config, plan.layout).named(aggregate.total)
    basis, energies = principal(sums[inputs_of(path.table)])
    assert r.config.slice_part is not None  # filled in
    width = width_left(plan.model, r.config.slice_part)
    fresh = in_basis(model.weights, path, basis[:, :width])
    held = float(energies[:width].sum() / energies.sum().clamp_min(1e-300))
    told = {"channels": [path.width, width], "channels_hold": held}
    edits = [edit for edit in model.edits if edit.kind != "slice"]
    edits.append(Edit("slice", path.decoder, (width,)))
    # Masks are whole, and those of the new shapes are made anew.
    model, r = edited(replace(model, masks={}), r, tuple(edits), fresh)
    return model, r, told


def rotatable(model: Model, plan: Plan) -> tuple[Model, Plan]:
    """The model without the units that its masks have emptied, and the plan that fits it.

    Raises:
        ConfigError: masks remove anything else, which no rotation would keep, or matrices are
            shared by layers that read through several norms.
    """
    why, (model, plan) = "", shrunk(model, fitted(plan, model.edits))
    masked = [name for name, mask in model.masks.items() if not all_true(mask)]
    if masked:
        why = f"weights of {masked[0]} are masked, and rotated they would not be 0"
    elif any(edit.kind == "share" for edit in model.edits):
        why = "matrices are shared, and each would have to take on another norm's weight"
    if why:
        raise ConfigError(
            f"reduce='slice': {why}; allowed: a model of which at most whole heads, neurons, "
            "sub-layers and layers were pruned"
        )
    return model, plan
