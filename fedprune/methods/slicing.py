"""Slicing: fewer channels between a decoder's layers, by the principal directions of a cohort."""

from __future__ import annotations

from dataclasses import replace

from fedprune.methods.factors import Told, edited
from fedprune.options.refusal import ConfigError
from fedprune.protocol.forms import form_of
from fedprune.protocol.port import Ask
from fedprune.redundancy.principal import in_basis, principal
from fedprune.scores.inputs import inputs_of
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Talk
from fedprune.server.shrink import fitted, shrunk
from fedprune.server.state import Model
from fedprune.structure.edits import Edit
from fedprune.structure.slicing import residual_path, width_left
from fedprune.tensors.named import all_true


def sliced(model: Model, r: Round) -> Talk[tuple[Model, Round, Told] | None]:
    """The narrower model with its round, and what the directions left hold; None: too few answered.

    Units that pruning has emptied are cut out first.

    Raises:
        ConfigError: as `rotatable`.
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
