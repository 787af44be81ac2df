"""Masks of tensors that do not compete, one tensor's scores at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fedprune.selection.arrays import as_masks, layer_of, layer_sizes, ranking_layers
from fedprune.selection.densities import Ground, Limits
from fedprune.selection.row_ranking import patterned
from fedprune.selection.rules import Rules
from fedprune.selection.scopes import SCOPES, counter, total_of
from fedprune.selection.select import check_count, left_of_tensor, plain_layout
from fedprune.selection.units import unit_kind
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import joined_to, shapes_of, some_of
from fedprune.tensors.named import Masks


def apart(unit: str, scope: str) -> bool:
    """Whether a tensor's mask depends on no score of another: `select_apart` can be used."""
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
) -> Masks:
    """What `select` gives where tensors do not compete, with one tensor's scores at a time.

    Args:
        rules: with a unit and a scope that `apart` allows for.
        score_of: a tensor's scores by its name; called once for each, in the order of `alive`.
        sparsity: as of `select`.
        alive: here it says which tensors there are.
        magnitude: breaks ties.
        layout: the model's.

    Raises:
        ValueError: as `select`, at the first tensor that it is about.
    """
    layout = layout or plain_layout(alive)
    shapes, floor, patterns = shapes_of(alive), rules.floor, rules.unit == "n:m"
    ground = Ground(shapes, sparsity, (), rules.densities, rules.progress)
    unit_kind(rules.unit, rules.unit_shape)
    # Of the scores only the sizes matter for how many go.
    counted = [layer_sizes(layer_of(t, t, None, floor, rules.part)) for t in alive.values()]
    counts: Sequence[int] = [0] * len(counted)
    if not patterns:
        total = total_of(ground, rules.scope)
        check_count(counted, total, floor, exact=True)
        limits = [Limits(x.size, x.must, x.most) for x in counted]
        counts = counter(ground, rules.scope)(limits, total)
    masks: Masks = some_of(alive, ())
    for name, count in zip(shapes, counts, strict=True):
        one = {name: score_of(name)}
        (layer,) = ranking_layers(
            one, {name: alive[name]}, {name: magnitude[name]}, floor, rules.part
        )
        if patterns and rules.unit_shape is not None:
            left = patterned(layout, name, layer, rules.unit_shape, sparsity)
        else:
            left = left_of_tensor(layout, name, layer, count, rules.scope)
        masks = joined_to(masks, as_masks(one, [left]))
    return masks
