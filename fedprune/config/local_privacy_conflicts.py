"""What noise on the client goes together with: steps of DP-SGD, and randomised response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedprune.options.refusal import Conflict
from fedprune.scores.score import Score
from fedprune.selection.units import UNITS

if TYPE_CHECKING:
    from fedprune.config.schema import RunConfig

_WHOLE = tuple(name for name in UNITS if name not in {"weight", "n:m"})
"""Units that go or stay as one: a bit says which."""


def local_conflicts(c: RunConfig, score: Score) -> list[Conflict]:
    """Every possible conflict of noise that clients add themselves, with whether it is one."""
    return [*example_conflicts(c, score), *response_conflicts(c)]


def example_conflicts(c: RunConfig, score: Score) -> list[Conflict]:
    """What steps of DP-SGD, and statistics of single examples, do not go together with."""
    here, single = c.dp == "example", "gradients are taken of single examples"
    inside = {"distil-hidden": c.distil_hidden, "distil-attention": c.distil_attention}
    asks = bool(score.asks) and c.sparsity != 0.0
    lessons = "what a teacher adds to the loss is not bounded by example"
    return [
        ("score", here and asks and not score.additive, "it is no sum over examples", "another"),
        (
            "combine",
            here and c.combine != "sum",
            "noise is added to sums over examples, before anything is scored",
            "sum",
        ),
        ("score-during", here and c.score_during == "tune", "steps are noise on gradients", "pass"),
        (
            "score-examples",
            here and c.score_examples is not None,
            "which examples are drawn depends on all of them",
            "leave it out",
        ),
        ("accumulate", here and c.accumulate > 1, "a step is one draw of examples", "1"),
        ("compile", here and c.compile, single, "false"),
        ("checkpointing", here and c.checkpointing, single, "false"),
        ("precision", here and c.precision != "fp32", "norms are taken in float32", "fp32"),
        ("distil", here and c.distil > 0, lessons, "0"),
        *[(key, here and weight > 0, lessons, "0") for key, weight in inside.items()],
    ]


def response_conflicts(c: RunConfig) -> list[Conflict]:
    """What randomised response does not go together with."""
    responds, units = c.response is not None, ", ".join(_WHOLE)
    coins = "with a bit for every weight each of them is a coin"
    signs = "it loses the sign of counts, which flips take below 0"
    return [
        ("response", responds and c.combine != "votes", "nobody votes", "--combine votes"),
        ("unit", responds and c.unit not in _WHOLE, coins, units),
        ("pool", responds and c.pool in {"l2", "abs-sum"}, signs, "mean, sum, max"),
        (
            "score-wire",
            responds and c.score_wire != "fp32",
            "the overlap it costs would tell the client's own mask",
            "fp32",
        ),
    ]
