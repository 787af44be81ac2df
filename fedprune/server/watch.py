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


def both(first: Watch, second: Watch) -> Watch:
    """Two who look on, one after the other."""

    def phase(arm: str, question: Question, partitions: int) -> None:
        first.phase(arm, question, partitions)
        second.phase(arm, question, partitions)

    def row(told: Row, seconds: float, state: State) -> None:
        first.row(told, seconds, state)
        second.row(told, seconds, state)

    return Watch(phase, row)
