"""What an accountant composes: noisy releases as events, whatever mechanism they are by."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One noisy release, or several that share a draw.

    Attributes:
        z: noise multiplier of a Gaussian mechanism; infinite: not one.
        rate: its part of the units is drawn, each by itself.
        sample: (population, drawn) without replacement, or None.
        spread: (rho, xi) of a mechanism that is concentrated (zCDP), or None.
        pure: epsilon of one bit of randomised response, or None.
    """

    z: float = math.inf
    rate: float = 1.0
    sample: tuple[int, int] | None = None
    spread: tuple[float, float] | None = None
    pure: float | None = None

    @property
    def unsampled(self) -> bool:
        """It is a Gaussian mechanism on all units, and only that."""
        return self.rate >= 1 and not (self.sample or self.spread) and self.pure is None


Profile = Counter[Event]
"""What one unit has been through: events, and how often."""

UNHIDDEN = Event(z=0.0)
"""Of a unit that nothing hides: epsilon is infinite."""
