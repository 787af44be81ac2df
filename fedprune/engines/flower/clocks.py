"""A device whose clock was wrong, which its SuperLink refused: what it is told, and tells."""

from __future__ import annotations

import math
import os
from typing import Any

CLOCK = "FEDPRUNE_CLOCK"
"""In a device's environment: that its clock was wrong, and until when (`clock_in`)."""


def own_clock() -> dict[str, str]:
    """What this process was left, as a node announces it; nothing where its clock was right."""
    return {"clock": os.environ[CLOCK]} if CLOCK in os.environ else {}


def clock_in(text: Any) -> tuple[float, float]:
    """What `devices node` leaves the client app: seconds ahead, and until when; else ValueError."""
    ahead, until = (float(word) for word in str(text).split())
    if not (math.isfinite(ahead) and math.isfinite(until)):
        raise ValueError(f"clock={text!r}")
    return ahead, until


def clock_off(ahead: float) -> str:
    """In words by how much a clock is off."""
    return f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the SuperLink's"
