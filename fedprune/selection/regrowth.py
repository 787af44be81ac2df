"""Prune and regrow at constant density: the weakest kept weights for the best removed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fedprune.selection.arrays import as_masks, ranking_layers
from fedprune.selection.ranking import (
    Bools,
    Layer,
    drop,
    ranked_together,
)
from fedprune.tensors.named import Masks

EXCHANGING = ("global", "layer")
"""The scopes that an exchange knows."""


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
            ``layer``: every tensor exchanges the same fraction and keeps its density.
        magnitude: absolute weights, as in `select`.
        floor: the weights of each tensor that stay before any come.

    Raises:
        ValueError: a fraction outside [0, 1], another scope, a NaN, or tensors that do not match.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    if scope not in EXCHANGING:
        raise ValueError(
            f"scope={scope!r}: regrowth needs {' or '.join(EXCHANGING)}; "
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


def _exchanged(kept: Sequence[Layer], removed: Sequence[Layer], fraction: float) -> list[Bools]:
    """What is kept after an exchange among these layers."""
    n, gone = sum(layer.size for layer in kept), sum(layer.gone for layer in kept)
    loose = sum(layer.most for layer in kept) - gone
    count = min(math.floor(fraction * (n - gone) + 0.5), gone, loose)
    left = ranked_together(kept, gone + count)
    grown = drop(removed, gone - count)
    return [np.logical_or(a, b) for a, b in zip(left, grown, strict=True)]
