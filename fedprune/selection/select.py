"""Which weights stay: how many go, from where, and the masks that say so.

The counts are exact under any ties: nothing here cuts scores at a threshold but `above`, whose
business that is. What ranks below what is said in `ranking`, how much each tensor loses in
`densities`, what goes together in `units`. What cannot be combined is in `combinations`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedprune.selection.arrays import LayerSizes, as_masks, layer_sizes, ranking_layers
from fedprune.selection.densities import Ground, Limits
from fedprune.selection.overlap import overlapping
from fedprune.selection.patterns import pattern_counts
from fedprune.selection.ranking import (
    Bools,
    Layer,
    Unreachable,
    drop,
    ranked_together,
)
from fedprune.selection.row_ranking import patterned, within_lines
from fedprune.selection.scopes import SCOPES, counter, total_of
from fedprune.selection.unit_numbers import Shape
from fedprune.selection.unit_ranking import competing, drop_units, ranked
from fedprune.selection.units import along_labels, staying_units, unit_kind, unit_labels
from fedprune.structure.layout import Layout, as_inputs
from fedprune.tensors.named import Masks

__all__ = ["SCOPES", "above", "check_reachable", "plain_layout", "removed_count", "select"]


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    alive: Mapping[str, Tensor] | None = None,
    magnitude: Mapping[str, Tensor] | None = None,
    floor: int = 1,
    unit: str = "weight",
    unit_shape: Shape | None = None,
    pool: str = "mean",
    layout: Layout | None = None,
    min_density: float = 0.0,
    max_density: float = 1.0,
    densities: Mapping[str, float] | None = None,
    progress: float = 1.0,
) -> Masks:
    """Masks (True = kept) that remove exactly floor(sparsity * n + 1/2) of the original n weights.

    Of units larger than a weight, whole ones go in rank order while they fit into that count; the
    pattern n:m holds exactly in every group, whatever the count.

    Args:
        scores: importance by name, any shapes and float types; infinities rank as one expects.
        sparsity: fraction removed of all n entries, those removed before included.
        scope: a name in `SCOPES`. All but ``global`` give every tensor a count of its own: shares
            are rounded by largest remainder, earlier tensors first; what a tensor's floor or its
            earlier losses do not allow is spread over the others by the same rule.
        alive: what earlier masks kept. What they removed counts and never comes back.
        magnitude: breaks ties between scores: the smaller absolute value goes first. Ties that are
            left go by position, the earlier first.
        floor: the highest ranked weights of each tensor that stay whatever the ranking says (all
            that are alive if they are fewer); 0 turns it off. It does not hold for units that are
            whole tensors.
        unit: a name in `fedprune.selection.units.UNITS`.
        unit_shape: N and M of ``n:m``, rows and columns of ``block``.
        pool: a name in `fedprune.selection.pools.POOLS`, for units larger than a weight.
        layout: the model's; only units and ``row`` need it, for the (out, in) view of a tensor and
            the structure. None: tensors are (out, ...), without structure.
        min_density: part of every tensor that stays, as `floor`.
        max_density: part of any tensor that may stay, at most.
        densities: shell pattern to density, for the scope ``patterns``.
        progress: how much of the way to `max_density` and `densities` is gone, for schedules.

    Returns:
        A boolean mask for every score, of the same shape and on the same device.

    Raises:
        ValueError: a NaN; a sparsity, scope, unit or pool that does not exist; tensors that do not
            match; a count below what `alive` removed already or above what the floors allow.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}: allowed are {', '.join(SCOPES)}")
    cap = 1.0 - progress * (1.0 - max_density)
    layers = ranking_layers(scores, alive, magnitude, floor, (min_density, cap))
    layout = layout or plain_layout(scores)
    kind = unit_kind(unit, unit_shape)
    if unit == "n:m" and unit_shape is not None:
        return as_masks(
            scores,
            [
                patterned(layout, name, layer, unit_shape, sparsity)
                for name, layer in zip(scores, layers, strict=True)
            ],
        )
    looks = SCOPES[scope].looks
    living = [x.scores if x.alive is None else x.scores[x.alive] for x in layers if looks]
    shapes = {name: t.shape for name, t in scores.items()}
    ground = Ground(shapes, sparsity, living, densities or {}, progress)
    total = total_of(ground, scope)
    check_count(layers, total, floor, exact=unit == "weight")
    if unit == "weight":
        return as_masks(scores, _weights_left(layers, total, scope, ground, layout))
    labels = unit_labels(layout, unit, unit_shape)
    own = [labels[name].reshape(-1).numpy() for name in scores]
    shared = along_labels(layout, unit)
    if shared is not None:
        along = [shared[name].reshape(-1).numpy() for name in scores]
        units = overlapping(layers, own, along, pool, evenly=scope == "layer")
        return as_masks(scores, drop_units(layers, units, total, None, floors=False))
    staying = staying_units(layout, unit)
    units = competing(ranked(layers, own, pool), staying)
    counts = None if SCOPES[scope].shares is None else counter(ground, scope)
    left = drop_units(
        *(layers, units, total, counts),
        floors=kind.tensors != "all",
        staying=staying,
    )
    return as_masks(scores, left)


def check_reachable(
    weights: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    floor: int = 1,
    min_density: float = 0.0,
    max_density: float = 1.0,
    densities: Mapping[str, float] | None = None,
) -> None:
    """Refuse what `select` would of dense tensors and single weights, without ranking any.

    Raises:
        ValueError: as `select`.
    """
    part = (min_density, max_density)
    # One tensor as an array at a time: of bfloat16 it takes twice the memory.
    layers = [
        layer_sizes(layer)
        for name, w in weights.items()
        for layer in ranking_layers({name: w}, None, None, floor, part)
    ]
    shapes = {name: t.shape for name, t in weights.items()}
    ground = Ground(shapes, sparsity, [np.empty(0)] * len(layers), densities or {})
    total = total_of(ground, scope)
    check_count(layers, total, floor, exact=True)
    if SCOPES[scope].shares is not None:
        counter(ground, scope)([Limits(x.size, x.must, x.most) for x in layers], total)


def removed_count(
    layout: Layout,
    sparsity: float,
    *,
    scope: str = "global",
    unit: str = "weight",
    unit_shape: Shape | None = None,
    densities: Mapping[str, float] | None = None,
    progress: float = 1.0,
) -> int:
    """How many weights `select` removes: exactly, but for units larger than a weight at most.

    Raises:
        ValueError: as `select`.
    """
    if unit == "n:m":
        unit_kind(unit, unit_shape)
        n, m = unit_shape or (0, 0)
        rows = [as_inputs(layout, x, _meta(layout, x)).shape for x in layout.prunable]
        return sum(r * int(pattern_counts(c, n, m, sparsity).sum()) for r, c in rows)
    shapes = {name: layout.shapes[name] for name in layout.prunable}
    return total_of(Ground(shapes, sparsity, (), densities or {}, progress), scope)


def _meta(layout: Layout, name: str) -> Tensor:
    return torch.empty(layout.shapes[name], device="meta")


def plain_layout(scores: Mapping[str, Tensor]) -> Layout:
    """The layout of tensors that nothing is known about but their shapes."""
    return Layout({name: t.shape for name, t in scores.items()}, tuple(scores), (), {})


def above(
    scores: Mapping[str, Tensor],
    threshold: float,
    *,
    alive: Mapping[str, Tensor] | None = None,
    magnitude: Mapping[str, Tensor] | None = None,
    floor: int = 1,
) -> Masks:
    """Masks that keep what is alive and scores above an absolute threshold, however many that is.

    The other arguments, the result and the errors are those of `select`. A tensor that would keep
    fewer than `floor` weights keeps its highest ranked ones.
    """
    if math.isnan(threshold):
        raise ValueError("threshold is NaN")
    layers = ranking_layers(scores, alive, magnitude, floor)
    return as_masks(scores, [_above(layer, threshold) for layer in layers])


def _above(layer: Layer, threshold: float) -> Bools:
    kept = (
        layer.scores > threshold
        if layer.alive is None
        else layer.alive & (layer.scores > threshold)
    )
    return kept if np.count_nonzero(kept) >= layer.least else _bare(layer)


def _bare(layer: Layer) -> Bools:
    """The layer's highest ranked weights, as few as its floor allows."""
    return drop([layer], layer.most - layer.gone)[0]


def _weights_left(
    layers: Sequence[Layer], total: int, scope: str, ground: Ground, layout: Layout
) -> list[Bools]:
    if SCOPES[scope].shares is None:
        return ranked_together(layers, total)
    limits = [Limits(layer.size, layer.must, layer.most) for layer in layers]
    counts = counter(ground, scope)(limits, total)
    return [
        left_of_tensor(layout, name, layer, count, scope)
        for name, layer, count in zip(ground.shapes, layers, counts, strict=True)
    ]


def left_of_tensor(layout: Layout, name: str, layer: Layer, count: int, scope: str) -> Bools:
    """What is left of a tensor of which so many weights are gone in the end."""
    lines = SCOPES[scope].lines
    if lines:
        return within_lines(layout, name, layer, count, lines)
    return drop([layer], count - layer.gone)[0]


def check_count(
    layers: Sequence[Layer | LayerSizes], total: int, floor: int, *, exact: bool
) -> None:
    """Refuse a count that what is gone or, if it has to be exact, floors or caps do not allow."""
    n, gone = sum(layer.size for layer in layers), sum(layer.gone for layer in layers)
    most, must = sum(layer.most for layer in layers), sum(layer.must for layer in layers)
    if gone > total:
        raise ValueError(f"cannot remove {total} of {n} weights: {gone} are removed already")
    if exact and total > most:
        reason = f"cannot remove {total} of {n} weights: floor {floor} allows {most}"
        raise Unreachable(reason, most, n)
    if exact and total < must:
        reason = f"cannot remove {total} of {n} weights: max_density takes {must}"
        raise Unreachable(reason, must, n)
