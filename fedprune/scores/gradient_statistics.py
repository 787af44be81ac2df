"""What clients are asked of their gradients: their sum, and sums of w·g and of squares."""

from __future__ import annotations

from typing import Any

from fedprune.scores.example_gradients import SumOverExamples, by_example
from fedprune.scores.gradients import (
    Each,
    SumOverBatches,
    by_client,
    gradient,
    mean_square,
    square,
    taylor,
    taylor_second,
    watched,
    watched_mean_square,
)
from fedprune.scores.score import FORWARDS_OF_A_STEP, Statistic

summed_gradient = SumOverBatches(gradient)
"""Σ g over a client's labels: one forward and one backward pass, nothing left behind."""


def _linear(each: Each) -> Statistic:
    return Statistic(
        SumOverExamples(each, SumOverBatches(each)), watch=watched(each), by_block=True
    )


ASK_GRADIENT, ASK_TAYLOR = _linear(gradient), _linear(taylor)
_SINGLE: dict[str, Any] = {
    "passes": "2 forwards, 1 backward of every example",
    # One for the slopes of what the model gives, then every example forward and back.
    "forwards": lambda _: 1.0 + FORWARDS_OF_A_STEP,
}
ASK_SQUARES = Statistic(by_example(square), **_SINGLE, signed=False, by_block=True)
ASK_TAYLOR_SECOND = Statistic(by_example(taylor_second), **_SINGLE, by_block=True)
ASK_BATCH_SQUARES = Statistic(
    SumOverBatches(mean_square), watch=watched(mean_square), signed=False, by_block=True
)
ASK_CLIENT_SQUARES = Statistic(
    by_client(mean_square), watch=watched_mean_square, signed=False, by_block=True
)
