"""Which weights stay: how many go, from where, and the masks that say so.

The counts are exact under any ties: scores are cut at a threshold in `above` alone. What ranks
below what is said in `ranking`, how much each tensor loses in `densities`, what goes together in
`units`, what cannot be combined in `scopes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedprune.selection.arrays import LayerSizes, as_masks, layer_sizes, ranking_layers
from fedprune.selection.densities import Ground, Limits
from fedprune.selection.overlap import overlapping
from fedprune.selection.pools import Numbers
from fedprune.selection.ranking import Bools, Layer, Unreachable, drop, ranked_together
from fedprune.selection.row_ranking import patterned, within_lines
from fedprune.selection.rules import Rules
from fedprune.selection.scopes import SCOPES, counter, total_of
from fedprune.selection.unit_ranking import competing, drop_units, ranked
from fedprune.selection.units import along_labels, staying_units, unit_kind, unit_labels
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    alive: Mapping[str, Tensor] | None = None,
    magnitude: Mapping[str, Tensor] | None = None,
    layout: Layout | None = None,
    **rules: Any,
) -> Masks:
    """Masks (True = kept) that remove exactly floor(sparsity * n + 1/2) of the original n weights.

    Of units larger than a weight, whole ones go in rank order while they fit into that count; the
    pattern n:m holds exactly in every group, whatever the count.

    Args:
        scores: importance by name, any shapes and float types; infinities rank as one expects.
        sparsity: fraction removed of all n entries, those removed before included.
        alive: what earlier masks kept. What they removed counts and never comes back.
        magnitude: breaks ties between scores: the smaller absolute value goes first. Ties that are
            left go by position, the earlier first.
        layout: the model's; only units and ``row`` need it, for the (out, in) view of a tensor and
            the structure. None: tensors are (out, ...), without structure.
        rules: the attributes of `fedprune.selection.rules.Rules`: ``scope="layer"``, ``floor=0``.

    Returns:
        A boolean mask for every score, of the same shape and on the same device.

    Raises:
        ValueError: a NaN; a sparsity, scope, unit or pool that does not exist; tensors that do not
            match; a count below what `alive` removed already or above what the floors allow.
        TypeError: a rule that there is not.
    """
    return select_by(
        Rules(**rules), scores, sparsity, alive=alive, magnitude=magnitude, layout=layout
    )


def select_by(
    rules: Rules,
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    alive: Mapping[str, Tensor] | None = None,
    magnitude: Mapping[str, Tensor] | None = None,
    layout: Layout | None = None,
) -> Masks:
    """`select`, whose rules are a value."""
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
    if rules.scope not in SCOPES:
        raise ValueError(f"unknown scope {rules.scope!r}: allowed are {', '.join(SCOPES)}")
    layers = ranking_layers(scores, alive, magnitude, rules.floor, rules.part)
    layout = layout or plain_layout(scores)
    unit_kind(rules.unit, rules.unit_shape)
    if rules.unit == "n:m" and rules.unit_shape is not None:
        named = zip(scores, layers, strict=True)
        shape = rules.unit_shape
        return as_masks(scores, [patterned(layout, n, x, shape, sparsity) for n, x in named])
    looks = SCOPES[rules.scope].looks
    living = [x.scores if x.alive is None else x.scores[x.alive] for x in layers if looks]
    shapes = {name: t.shape for name, t in scores.items()}
    ground = Ground(shapes, sparsity, living, rules.densities, rules.progress)
    total = total_of(ground, rules.scope)
    check_count(layers, total, rules.floor, exact=rules.unit == "weight")
    if rules.unit == "weight":
        return as_masks(scores, _weights_left(layers, total, rules.scope, ground, layout))
    return as_masks(scores, _units_left(layers, total, rules, ground, layout))


def _units_left(
    layers: Sequence[Layer], total: int, rules: Rules, ground: Ground, layout: Layout
) -> list[Bools]:
    """What is left where whole units go, as many as fit into a total."""
    labels = unit_labels(layout, rules.unit, rules.unit_shape)
    own = [labels[name].reshape(-1).numpy() for name in ground.shapes]
    shared = along_labels(layout, rules.unit)
    if shared is not None:
        along = [shared[name].reshape(-1).numpy() for name in ground.shapes]
        units = overlapping(layers, own, along, rules.pool, evenly=rules.scope == "layer")
        return list(drop_units(layers, units, total, None, floors=False))
    return list(left_of_units(layers, layers, own, total, rules, ground, layout))


def left_of_units(
    layers: Iterable[Layer],
    sizes: Sequence[Layer],
    labels: Sequence[Numbers],
    total: int,
    rules: Rules,
    ground: Ground,
    layout: Layout,
) -> Iterator[Bools]:
    """What is left of each layer where whole units go that do not overlap, as many as fit.

    `layers`: what is ranked; gone through once. `sizes`: the same, for all but their scores.
    """
    staying = staying_units(layout, rules.unit)
    units = competing(ranked(layers, labels, rules.pool), staying)
    counts = None if SCOPES[rules.scope].shares is None else counter(ground, rules.scope)
    floors = unit_kind(rules.unit, rules.unit_shape).tensors != "all"
    return drop_units(sizes, units, total, counts, floors=floors, staying=staying)


def check_reachable(weights: Mapping[str, Tensor], sparsity: float, rules: Rules) -> None:
    """Refuse what `select` would of dense tensors and single weights, without ranking any."""
    # One tensor as an array at a time: of bfloat16 it takes twice the memory.
    layers = [
        layer_sizes(layer)
        for name, w in weights.items()
        for layer in ranking_layers({name: w}, None, None, rules.floor, rules.part)
    ]
    shapes = {name: t.shape for name, t in weights.items()}
    ground = Ground(shapes, sparsity, [np.empty(0)] * len(layers), rules.densities)
    total = total_of(ground, rules.scope)
    check_count(layers, total, rules.floor, exact=True)
    if SCOPES[rules.scope].shares is not None:
        counter(ground, rules.scope)([Limits(x.size, x.must, x.most) for x in layers], total)


def plain_layout(scores: Mapping[str, Tensor]) -> Layout:
    """The layout of tensors that nothing is known about but their shapes."""
    return Layout({name: t.shape for name, t in scores.items()}, tuple(scores), (), {})


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
    kept = layer.scores > threshold
    if layer.alive is not None:
        kept &= layer.alive
    if np.count_nonzero(kept) >= layer.least:
        return kept
    return drop([layer], layer.most - layer.gone)[0]
