"""How finely a clipped vector is cut into integers, and how much Skellam noise their sum gets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedprune.privacy.release import Release

_FINE = 128.0
"""Steps, times the root of the number of coordinates, that a clip norm has at least.

Rounding moves a vector by half a step a coordinate at most, two by one: less than 1/128 of it.
"""

_FINEST = 2.0**16
"""Steps that a clip norm has at least, where there are few coordinates."""


@dataclass(frozen=True)
class Noise:
    """Skellam noise on a sum of integers.

    Attributes:
        step: value of 1.
        clip: largest L2 norm of one client's part, as a real number.
        mu: variance of the noise on the sum, in steps.
        l1: L1 sensitivity of the sum, in steps.
        l2: its L2 sensitivity, in steps, rounding included.
    """

    step: float
    clip: float
    mu: float
    l1: float
    l2: float


def noise_for(release: Release) -> Noise:
    """The noise of a release whose clip, sensitivity, size and multiplier are known.

    The standard deviation of the noise is `z` times the L2 sensitivity in steps. Votes are whole
    numbers already and are not rounded.
    """
    clip, sensitivity = release.clip or 0.0, release.sensitivity or 0.0
    root = math.sqrt(release.coordinates)
    whole = release.quantity == "votes"
    step = 1.0 if whole else 2.0 ** math.floor(math.log2(clip / max(_FINEST, _FINE * root)))
    l2 = sensitivity / step + (0.0 if whole else root)
    l1 = min(root * l2, l2**2)  # integers are no larger than their squares
    return Noise(step, clip, ((release.z or 0.0) * l2) ** 2, l1, l2)


RANGES = {
    "changes": (1e6, 1e3),
    "scores": (1e6, 1e3),
    "moments": (1e9, 1e5),
    "metrics": (1e9, 1e5),
    "counts": (1e12, 1e6),
}
"""The largest magnitude of what one client adds to a sum, weighted, in 64 and in 32 bits.

With 64 bits and 100 clients a change or a score is rounded to a multiple of 1.5e-11. Votes are
whole numbers and need no range.
"""

COARSER, MOST = 2.0**10, 3
"""By how much a range of 32 bits is widened where a client's numbers do not fit, and how often."""
