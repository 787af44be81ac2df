"""What noise on the client goes together with: steps of DP-SGD, and randomised response."""

from __future__ import annotations

from fedprune.config.sections import AllOptions
from fedprune.options.conditions import only
from fedprune.options.refusal import Conflict
from fedprune.scores.score import Score
from fedprune.selection.units import UNITS

_WHOLE = tuple(name for name in UNITS if name not in {"weight", "n:m"})
"""Units that go or stay as one: a bit says which."""


def local_conflicts(c: AllOptions, score: Score) -> list[Conflict]:
    """Every possible conflict of noise that clients add themselves, with whether it is one."""
    return [*example_conflicts(c, score), *response_conflicts(c)]


def example_conflicts(c: AllOptions, score: Score) -> list[Conflict]:
    """What steps of DP-SGD, and statistics of single examples, do not go together with."""
    here, single = c.dp == "example", "gradients are taken of single examples"
    adds = here and bool(score.asks) and c.sparsity != 0.0 and not score.additive
    summed = "noise is added to sums over examples, before anything is scored"
    lessons = "what a teacher adds to the loss is not bounded by example"
    return [
        ("score", adds, "it is no sum over examples", "another"),
        *only(c, here, summed, combine="sum"),
        *only(c, here, "steps are noise on gradients", score_during="pass"),
        *only(c, here, "which examples are drawn depends on all of them", score_examples=None),
        *only(c, here, "a step is one draw of examples", accumulate=1),
        *only(c, here, single, compile=False, checkpointing=False),
        *only(c, here, "norms are taken in float32", precision="fp32"),
        *only(c, here, lessons, distil=0.0, distil_hidden=0.0, distil_attention=0.0),
    ]


def response_conflicts(c: AllOptions) -> list[Conflict]:
    """What randomised response does not go together with."""
    responds = c.response is not None
    coins = "with a bit for every weight each of them is a coin"
    signs, signed = "it loses the sign of counts, which flips take below 0", ("l2", "abs-sum")
    overlap = "the overlap it costs would tell the client's own mask"
    return [
        *only(c, responds, coins, unit=_WHOLE),
        ("pool", responds and c.pool in signed, signs, "mean, sum, max"),
        *only(c, responds, overlap, score_wire="fp32"),
    ]
