"""Nested parts of a model by position, which server and clients find alike: they need no data."""

from __future__ import annotations

from collections.abc import Sequence

from fedprune.config import RunConfig
from fedprune.protocol.choice import Wanted, chosen
from fedprune.selection.units import by_position
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Masks, Tensors, count_kept


def first_parts(
    densities: Sequence[float],
    masks: Masks,
    weights: Tensors,
    config: RunConfig,
    layout: Layout,
) -> list[Masks]:
    """For each density the first so many units of what a mask keeps, nested in one another.

    Args:
        densities: from above 0 to 1, of what the mask keeps.
        masks: True = kept.
        weights: of the model, for ties.
        config: its unit and scope.
        layout: the model's layout.
    """
    scores = by_position(layout, config.unit, config.unit_shape)
    kept = {n: weights[n] for n in masks}
    density = count_kept(masks) / layout.whole

    def part(share: float) -> Masks:
        if share == 1.0:
            return masks
        wanted = Wanted(1.0 - share * density, config.scope)
        return chosen(scores, wanted, config, layout, masks, kept)

    return [part(share) for share in densities]
