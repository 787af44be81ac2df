"""Masks of tensors that do not compete, or of units, one tensor's scores at a time."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

import torch
from torch import Tensor

from fedprune.selection.arrays import as_masks, layer_of, layer_sizes, ranking_layers
from fedprune.selection.densities import Ground, Limits
from fedprune.selection.ranking import Array, Layer, Made, ranked_together
from fedprune.selection.row_ranking import patterned
from fedprune.selection.rules import Rules
from fedprune.selection.scopes import SCOPES, counter, total_of
from fedprune.selection.select import check_count, left_of_tensor, left_of_units, plain_layout
from fedprune.selection.units import UNITS, unit_kind, unit_labels
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import joined_to, shapes_of, some_of
from fedprune.tensors.named import Masks


def apart(unit: str, scope: str) -> bool:
    """Whether masks are had from the scores of one tensor at a time: by `select_apart`.

    Of single weights those of one ranking are asked for several times. Of units what ranks them is
    a number for each; but for channels, of which a weight is in two.
    """
    rule = SCOPES[scope]
    if unit == "weight":
        return not rule.looks
    return unit == "n:m" or (UNITS[unit].along is None and not rule.looks)


def counted_apart(unit: str, scope: str) -> bool:
    """Whether the mask of a tensor depends on nothing but sizes of the others."""
    rule = SCOPES[scope]
    return unit == "n:m" or (unit == "weight" and rule.shares is not None and not rule.looks)


def select_apart(
    rules: Rules,
    score_of: Callable[[str], Tensor],
    sparsity: float,
    *,
    alive: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
    layout: Layout | None = None,
    names: Container[str] | None = None,
) -> Masks:
    """What `select` gives, with one tensor's scores at a time.

    `score_of`: a tensor's scores by its name, the same ones whenever it is called; in the order of
    `alive`, once, or in one ranking of all tensors several times. `alive`: here it says which
    tensors there are. `names`: which masks are wanted, where `counted_apart`; None: all.

    Raises:
        ValueError: as `select`, at the first tensor that it is about.
    """
    layout = layout or plain_layout(alive)
    unit_kind(rules.unit, rules.unit_shape)
    if rules.unit == "weight" and SCOPES[rules.scope].shares is None:
        return _together(rules, score_of, sparsity, alive, magnitude)
    if rules.unit not in ("weight", "n:m"):
        return _units_apart(rules, score_of, sparsity, alive, magnitude, layout)
    patterns = rules.unit == "n:m"
    counts = [0] * len(alive) if patterns else _counts(rules, sparsity, alive)
    masks: Masks = some_of(alive, ())
    for name, count in zip(alive, counts, strict=True):
        if names is not None and name not in names:
            continue
        one = {name: score_of(name)}
        layer = _layer(rules, one, alive, magnitude)
        if patterns and rules.unit_shape is not None:
            left = patterned(layout, name, layer, rules.unit_shape, sparsity)
        else:
            left = left_of_tensor(layout, name, layer, count, rules.scope)
        masks = joined_to(masks, as_masks(one, [left]))
    return masks


def _counts(rules: Rules, sparsity: float, alive: Mapping[str, Tensor]) -> Sequence[int]:
    """How many weights of each tensor are gone in the end; of the scores only sizes matter."""
    ground = Ground(shapes_of(alive), sparsity, (), rules.densities, rules.progress)
    counted = [layer_sizes(layer_of(t, t, None, rules.floor, rules.part)) for t in alive.values()]
    total = total_of(ground, rules.scope)
    check_count(counted, total, rules.floor, exact=True)
    limits = [Limits(x.size, x.must, x.most) for x in counted]
    return counter(ground, rules.scope)(limits, total)


def _layer(
    rules: Rules,
    one: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
) -> Layer:
    living, sizes = ({name: of[name] for name in one} for of in (alive, magnitude))
    return ranking_layers(one, living, sizes, rules.floor, rules.part)[0]


def _together(
    rules: Rules,
    score_of: Callable[[str], Tensor],
    sparsity: float,
    alive: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
) -> Masks:
    """The same where all tensors are one ranking: their scores are gone through several times."""
    total = total_of(Ground(shapes_of(alive), sparsity), rules.scope)
    layers = [layer_of(m, m, None, rules.floor, rules.part) for m in alive.values()]

    def scored(name: str) -> Array:
        return _layer(rules, {name: score_of(name)}, alive, magnitude).scores

    def sized(name: str) -> Array:
        return _layer(rules, {name: magnitude[name]}, alive, magnitude).scores

    check_count(layers, total, rules.floor, exact=True)
    left = ranked_together(layers, total, Made(alive, scored), Made(alive, sized))
    return as_masks(alive, left)


def _units_apart(
    rules: Rules,
    score_of: Callable[[str], Tensor],
    sparsity: float,
    alive: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
    layout: Layout,
) -> Masks:
    shapes, numbers = shapes_of(alive), unit_labels(layout, rules.unit, rules.unit_shape)
    ground = Ground(shapes, sparsity, (), rules.densities, rules.progress)
    total = total_of(ground, rules.scope)

    def bare(name: str) -> Layer:
        mask = alive[name]
        return layer_of(mask, mask, None, rules.floor, rules.part)

    sizes = Made(shapes, bare)
    check_count([layer_sizes(x) for x in sizes], total, rules.floor, exact=False)
    layers = (_layer(rules, {name: score_of(name)}, alive, magnitude) for name in shapes)
    labels = Made(shapes, lambda name: numbers[name].reshape(-1).numpy())
    masks: Masks = some_of(alive, ())
    left = left_of_units(layers, sizes, labels, total, rules, ground, layout)
    for name, kept in zip(shapes, left, strict=True):
        mask = torch.from_numpy(kept).reshape(shapes[name])
        masks = joined_to(masks, {name: mask.to(alive[name].device)})
    return masks
