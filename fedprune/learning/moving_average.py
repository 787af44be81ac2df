"""A running average of the rounds' weights: what is measured and kept, while training goes on.

The average is on the mask: of weights that were removed since it forgets what it knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedprune.learning.candidates import Candidate, blended, way_back
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Tensors, copied, masked

MOVING = {
    "none": "the last round's weights are the result",
    "ema": "exponential moving average over all rounds (--moving-decay; Polyak and Juditsky 1992, "
    "as in arXiv 1703.01780, section 2)",
    "swa": "mean of the rounds from the last pruning on (Izmailov et al. 2018, arXiv 1803.05407, "
    "without its learning rate cycles and its pass for BatchNorm)",
}


@dataclass(frozen=True)
class Moving:
    """An average and how many rounds are in it."""

    weights: Tensors
    rounds: int


def moved(
    before: Moving | None,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    layout: Layout,
    decay: float | None,
) -> Moving:
    """The average with one more round in it, float32, exactly 0.0 where a mask is False.

    BatchNorm's running variances are averaged as second moments. Without one before it begins with
    these weights. `decay` is the part of the average that stays (EMA); None: all rounds count alike
    (SWA).
    """
    if before is None:
        return Moving(copied(weights), 1)
    stays = before.rounds / (before.rounds + 1) if decay is None else decay
    back = way_back(masked(before.weights, masks), weights, layout)
    return Moving(blended(weights, back, Candidate(stays), layout), before.rounds + 1)
