"""Masks that cut scores at a threshold: how many weights stay is whatever it comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from fedprune.selection.arrays import as_masks, ranking_layers
from fedprune.selection.ranking import Bools, Layer, drop
from fedprune.tensors.named import Masks


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
    return (
        kept if np.count_nonzero(kept) >= layer.least else drop([layer], layer.most - layer.gone)[0]
    )
