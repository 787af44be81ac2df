"""Prune and regrow at constant density: the weakest kept weights for the best removed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fedprune.selection.arrays import as_masks, ranking_layers
from fedprune.selection.densities import Limits, exactly, removed_counts
from fedprune.selection.ranking import Bools, Layer, drop, ranked_together
from fedprune.tensors.named import Masks, count_kept

EXCHANGING = ("global", "layer", "er", "erk")  # The scopes that an exchange knows

GROWN = ("gradient", "random")
"""By what a client grows weights: the largest gradients of every tensor, or by chance, more where
the kept ones are larger (`redistributed`)."""


def exchange_weights(
    masks: Mapping[str, Tensor],
    drop_scores: Mapping[str, Tensor],
    grow_scores: Mapping[str, Tensor],
    fraction: float,
    *,
    scope: str = "global",
    magnitude: Mapping[str, Tensor] | None = None,
    floor: int = 1,
) -> Masks:
    """Masks with as many weights as before, some of them others.

    floor(fraction * kept + 1/2) of the kept weights go, the lowest `drop_scores` first, and as many
    of those that were removed before come, the highest `grow_scores` first: Evci et al. 2020
    (RigL), arXiv 1911.11134, section 3. Fewer if not so many were removed, or if floors hold them.
    A weight that goes cannot come back in the same step. Counts are exact and ties are broken as in
    `fedprune.selection.select.select`: lower magnitude, then earlier position ranks lower.

    Args:
        masks: True = kept.
        drop_scores: importance of the kept weights; what it says of others is not looked at.
        grow_scores: importance of the removed weights, likewise.
        fraction: part of the kept weights to exchange.
        scope: ``global``: the count is the whole model's, so tensors may grow or shrink;
            the others: every tensor exchanges the same fraction and keeps its density.
        magnitude: absolute weights, as in `select`.
        floor: the weights of each tensor that stay before any come.

    Raises:
        ValueError: a fraction outside [0, 1], another scope, a NaN, or tensors that do not match.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    if scope not in EXCHANGING:
        raise ValueError(
            f"scope={scope!r}: regrowth needs a count of the model or of its tensors; "
            f"allowed: {', '.join(EXCHANGING)}"
        )
    kept = ranking_layers(drop_scores, masks, magnitude, floor)
    removed = ranking_layers(grow_scores, {n: ~m for n, m in masks.items()}, magnitude, 0)
    parts = [range(len(kept))] if scope == "global" else [[i] for i in range(len(kept))]
    after = [np.zeros(0, bool) for _ in kept]
    for part in parts:
        new = _exchanged([kept[i] for i in part], [removed[i] for i in part], fraction)
        for i, mask in zip(part, new, strict=True):
            after[i] = mask
    return as_masks(drop_scores, after)


def redistributed(
    masks: Mapping[str, Tensor],
    sizes: Mapping[str, Tensor],
    fraction: float,
    gen: torch.Generator,
    *,
    floor: int = 1,
) -> Masks:
    """Masks with as many weights as before, some of them others, and not as many in each tensor.

    floor(fraction * kept + 1/2) of the kept weights of every tensor go, the smallest first. As many
    in all come back, in each tensor in proportion to the mean size of what it kept before
    (Dettmers & Zettlemoyer 2019, arXiv 1907.04840, section 3.2, with sizes in place of momentum),
    as far as there is room, drawn among all that are not kept now.
    """
    left: Masks = {}
    for name, mask in masks.items():
        (layer,) = ranking_layers({name: sizes[name]}, {name: mask}, None, floor)
        count = min(math.floor(fraction * int(mask.sum()) + 0.5), layer.most - layer.gone)
        left |= as_masks({name: sizes[name]}, drop([layer], count))
    means = [float(sizes[n][m].mean()) if m.any() else 0.0 for n, m in masks.items()]
    rooms = [int((~m).sum()) for m in left.values()]
    many = count_kept(masks) - count_kept(left)
    counts = in_proportion(many, means, rooms)
    return {n: _with_drawn(m, k, gen) for (n, m), k in zip(left.items(), counts, strict=True)}


def in_proportion(total: int, by: Sequence[float], rooms: Sequence[int]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to `by`, none above its room.

    What has no room is shared out among the others in the same proportion.
    """
    ways = [Fraction(x) for x in by]
    limits = [Limits(room, 0, room) for room in rooms]
    return removed_counts(limits, total, exactly(ways, total, rooms), ways)


def largest_of_each(
    scores: Mapping[str, Tensor], counts: Sequence[int], alive: Mapping[str, Tensor]
) -> Masks:
    """The mask that keeps so many weights of every tensor: the best of what is alive."""
    masks: Masks = {}
    for (name, score), count in zip(scores.items(), counts, strict=True):
        (layer,) = ranking_layers({name: score}, {name: alive[name]}, None, 0)
        masks |= as_masks({name: score}, drop([layer], layer.most - layer.gone - count))
    return masks


def _with_drawn(mask: Tensor, count: int, gen: torch.Generator) -> Tensor:
    """The mask with so many more, drawn among those that it does not keep."""
    free = (~mask).flatten().nonzero().flatten()
    drawn = free[torch.randperm(len(free), generator=gen)[:count]]
    return mask.flatten().index_fill(0, drawn, True).reshape(mask.shape)


def _exchanged(kept: Sequence[Layer], removed: Sequence[Layer], fraction: float) -> list[Bools]:
    """What is kept after an exchange among these layers."""
    n, gone = sum(layer.size for layer in kept), sum(layer.gone for layer in kept)
    loose = sum(layer.most for layer in kept) - gone
    count = min(math.floor(fraction * (n - gone) + 0.5), gone, loose)
    left = ranked_together(kept, gone + count)
    grown = drop(removed, gone - count)
    return [np.logical_or(a, b) for a, b in zip(left, grown, strict=True)]
