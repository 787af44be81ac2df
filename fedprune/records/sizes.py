"""How much of a model is left: sparsity, parameters, layers and units, against the dense model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from fedprune.codec.masks import mask_digest
from fedprune.methods.acting import done
from fedprune.methods.global_mask import cost_of
from fedprune.options.refusal import counted
from fedprune.records.staying import nearly_empty, staying_kinds, uncut, uncut_summary
from fedprune.redundancy.spectrum import spectrum_of
from fedprune.selection.options import Pruning
from fedprune.server.plan import Plan
from fedprune.server.state import State
from fedprune.structure.cuts import alive_units
from fedprune.structure.edits import Edits, to_json
from fedprune.structure.flops import flops
from fedprune.structure.groups import Group
from fedprune.structure.layout import Layout, as_rows
from fedprune.tensors.named import Masks, count_kept, digest, kept_in

Summary = dict[str, Any]  # What a run came to, as JSON has it


def sizes_of_model(config: Pruning, layout: Layout, end: State, plan: Plan | None) -> Summary:
    """How much is left, in all and by layer, counted against the dense model."""
    kept = count_kept(end.masks)
    now = layout if plan is None else plan.layout
    masks, prunable, parameters = now.in_origin(end.masks), layout.whole, layout.parameters
    zeros = sum(m.numel() for m in end.masks.values()) - kept
    layers = [
        {"name": name, "kept": kept_in(m, m), "total": m.numel(), **_rank(name, end, now)}
        for name, m in masks.items()
    ]
    return {
        "sparsity": (prunable - kept) / prunable,
        "sparsity_asked": config.sparsity,
        "reached": not end.pending if plan is None else done(end, plan),
        "short": _short(config, (prunable - kept) / prunable, end, plan),
        "short_why": _why_short(config, end),
        **_flops(end.masks, plan),
        "sparsity_of_all": (parameters - now.parameters + zeros) / parameters,
        "parameters": parameters,
        "parameters_left": now.parameters,
        "edits": json.loads(to_json(end.edits)),
        "structure": units_left(layout, masks, end.edits),
        "prunable_parameters": prunable,
        "kept_parameters": kept,
        "not_prunable": list(layout.spared),
        "frozen": list(layout.frozen),
        "stays": staying_kinds(layout),
        "notes": [text for text in (*layout.notes, uncut_summary(uncut(config, layout))) if text],
        "layers": layers,
        "nearly_empty": nearly_empty(layers, config.unit),
        "mask_digest": mask_digest(masks),
        "weights_digest": digest(end.weights),
    }


def _short(config: Pruning, sparsity: float, end: State, plan: Plan | None) -> float:
    """By how much the sparsity misses the one asked for, as whole units make it; else 0.0.

    Of a target of bytes or FLOPs, the part of it by which it is missed.
    """
    if plan is not None and (config.target_bytes or config.target_flops) and not end.pending:
        cost, target = cost_of(end.model, plan)
        return max(0.0, cost(end.masks) / target - 1.0) if end.edits == plan.edits else 0.0
    asked = config.sparsity or 0.0
    missed = asked - sparsity if config.schedule != "adaptive" else 0.0
    return missed if missed > LEAST_MISSED else 0.0


def _why_short(config: Pruning, end: State) -> str:
    if end.pending and (void := end.round - end.completed):
        return f"{void} of {counted(end.round, 'round')} void, in which nothing changes"
    if config.target_bytes or config.target_flops:
        return "no mask that these scores give costs so little"
    if config.unit == "n:m" and config.unit_shape is not None:
        n, m = config.unit_shape
        return f"groups of fewer than {m} inputs keep more than {n} of {m}"
    return "the next unit is larger than what is left to remove"


LEAST_MISSED = 1e-3  # Sparsities that differ by less are the same to a reader


MOST_NUMBERS = 2**21
"""Larger matrices have no spectrum in a summary: `fedprune analyse` takes its time."""


MOST_IN_ALL = 2**25  # Nor have those of models with more prunable weights than this


def _rank(name: str, end: State, now: Layout) -> Summary:
    """The effective rank of what is left of a matrix, and the largest there could be."""
    weight = end.weights.get(name)
    if weight is None or weight.numel() > MOST_NUMBERS or now.whole > MOST_IN_ALL:
        return {}
    matrix = as_rows(now, name, weight)
    return {"effective_rank": spectrum_of(matrix).effective_rank, "most": min(matrix.shape)}


def _flops(masks: Masks, plan: Plan | None) -> Summary:
    """FLOPs of the prunable layers for one example: as counted, zeros are not yet skipped."""
    if plan is None or not plan.flops_dense:
        return {}
    return {"flops_dense": plan.flops_dense, "flops_kept": flops(masks, plan.positions)}


def units_left(layout: Layout, masks: Masks, edits: Edits) -> list[Summary]:
    """Of every group of heads, neurons or channels of the dense model, which units are left.

    A unit is left while the mask keeps any of its weights; where its tensors were replaced by
    factors or are shared, until it is cut.
    """
    cut = {(edit.kind, edit.path): list(edit.kept) for edit in edits}
    return [
        {"path": group.path, "kind": group.kind, "of": len(group.parts[0].index), "kept": kept}
        for group in layout.structure.groups
        for kept in [_kept_units(group, masks, layout, cut)]
    ]


def _kept_units(
    group: Group, masks: Masks, layout: Layout, cut: Mapping[tuple[str, str], list[int]]
) -> list[int]:
    if all(part.tensor in masks for part in group.parts):
        return torch.nonzero(alive_units(group, masks, layout)).flatten().tolist()
    return cut.get((group.kind, group.path), list(range(len(group.parts[0].index))))
