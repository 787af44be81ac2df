"""What one client takes, of memory, of a card and of time: measured before round one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Footprint:
    """What a process that serves clients takes.

    Attributes:
        memory: bytes resident at its peak; 0: not known.
        card: bytes of a card at its peak; 0: none is used.
        card_room: bytes that a card here has free.
        step: seconds of a step of training; 0: not known.
    """

    memory: float = 0.0
    card: float = 0.0
    card_room: float = 0.0
    step: float = 0.0
