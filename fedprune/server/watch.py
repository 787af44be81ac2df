"""Who looks on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedprune.protocol.messages import Question
from fedprune.server.rows import Row
from fedprune.server.state import State


@dataclass(frozen=True)
class Watch:
    """Who looks on: both may be left out, neither can change the run."""

    phase: Callable[[str, Question, int], None] = lambda *_: None
    row: Callable[[Row, float, State], None] = lambda *_: None
