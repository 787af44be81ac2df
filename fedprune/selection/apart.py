"""Masks of tensors that do not compete, one tensor's scores at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fedprune.selection.arrays import as_masks, layer_of, layer_sizes, ranking_layers
from fedprune.selection.densities import Ground, Limits
from fedprune.selection.row_ranking import patterned
from fedprune.selection.scopes import SCOPES, counter, total_of
from fedprune.selection.select import check_count, left_of_tensor, plain_layout
from fedprune.selection.unit_numbers import Shape
from fedprune.selection.units import unit_kind
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import joined_to, shapes_of, some_of
from fedprune.tensors.named import Masks


def apart(unit: str, scope: str) -> bool:
    """Whether a tensor's mask depends on no score of another: `select_apart` can be used."""
    rule = SCOPES[scope]
    return unit == "n:m" or (unit == "weight" and rule.shares is not None and not rule.looks)


def select_apart(
    score_of: Callable[[str], Tensor],
    sparsity: float,
    *,
    alive: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
    scope: str,
    floor: int = 1,
    unit: str = "weight",
    unit_shape: Shape | None = None,
    layout: Layout | None = None,
    min_density: float = 0.0,
    max_density: float = 1.0,
    densities: Mapping[str, float] | None = None,
    progress: float = 1.0,
) -> Masks:
    """What `select` gives where tensors do not compete, with one tensor's scores at a time.

    Args:
        score_of: a tensor's scores by its name; called once for each, in the order of `alive`.
        sparsity: as of `select`, and so are those below.
        alive: here it says which tensors there are.
        magnitude: breaks ties.
        scope: one that `apart` allows for.
        floor: weights of each tensor that stay.
        unit: ``weight`` or ``n:m``.
        unit_shape: N and M.
        layout: the model's.
        min_density: part of every tensor that stays.
        max_density: part that may stay.
        densities: for the scope ``patterns``.
        progress: on the way to them.

    Raises:
        ValueError: as `select`, at the first tensor that it is about.
    """
    part = (min_density, 1.0 - progress * (1.0 - max_density))
    layout = layout or plain_layout(alive)
    shapes = shapes_of(alive)
    ground = Ground(shapes, sparsity, (), densities or {}, progress)
    unit_kind(unit, unit_shape)
    # Of the scores only the sizes matter for how many go.
    counted = [layer_sizes(layer_of(t, t, None, floor, part)) for t in alive.values()]
    counts: Sequence[int] = [0] * len(counted)
    if unit != "n:m":
        total = total_of(ground, scope)
        check_count(counted, total, floor, exact=True)
        counts = counter(ground, scope)([Limits(x.size, x.must, x.most) for x in counted], total)
    masks: Masks = some_of(alive, ())
    for name, count in zip(shapes, counts, strict=True):
        one = {name: score_of(name)}
        (layer,) = ranking_layers(one, {name: alive[name]}, {name: magnitude[name]}, floor, part)
        if unit == "n:m" and unit_shape is not None:
            left = patterned(layout, name, layer, unit_shape, sparsity)
        else:
            left = left_of_tensor(layout, name, layer, count, scope)
        masks = joined_to(masks, as_masks(one, [left]))
    return masks
