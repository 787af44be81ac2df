"""What clients are asked of their gradients: their sum, and sums of w·g and of squares."""

from __future__ import annotations

from typing import Any

from fedprune.scores.example_gradients import SumOverExamples, by_example
from fedprune.scores.gradients import (
    by_batch,
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

summed_gradient = by_batch(gradient)
"""Σ g over a client's labels: one forward and one backward pass, nothing left behind."""

ASK_GRADIENT = Statistic(
    SumOverExamples(gradient, by_batch(gradient)), watch=watched(gradient), by_block=True
)
ASK_TAYLOR = Statistic(
    SumOverExamples(taylor, by_batch(taylor)), watch=watched(taylor), by_block=True
)
_SINGLE: dict[str, Any] = {
    "passes": "2 forwards, 1 backward of every example",
    # One for the slopes of what the model gives, then every example forward and back.
    "forwards": lambda _: 1.0 + FORWARDS_OF_A_STEP,
}
ASK_SQUARES = Statistic(by_example(square), **_SINGLE, signed=False, by_block=True)
ASK_TAYLOR_SECOND = Statistic(by_example(taylor_second), **_SINGLE, by_block=True)
ASK_BATCH_SQUARES = Statistic(
    by_batch(mean_square), watch=watched(mean_square), signed=False, by_block=True
)
ASK_CLIENT_SQUARES = Statistic(
    by_client(mean_square), watch=watched_mean_square, signed=False, by_block=True
)
