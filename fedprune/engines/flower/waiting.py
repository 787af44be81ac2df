"""How long the replies to a question are waited for: one deadline of all its tries together."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from statistics import median

from flwr.app import Error
from flwr.serverapp import Grid

from fedprune.engines.flower.announced import networked
from fedprune.protocol.failures import plain

FACTOR = 3.0
"""Of the median of what others took, what ``--deadline auto`` gives everybody."""

SHORTEST = 60.0
"""Seconds that it gives at least: Flower itself takes nine for a question."""

UNKNOWN_YET = 600.0
"""Seconds that it gives where half of those asked have not answered, nor any such question before;
and as many more as the question takes both ways at `BANDWIDTH`."""

BANDWIDTH = 125_000.0
"""Bytes a second that every device is taken to have then: 1 Mbit/s."""

MISSED = "missed a deadline, and has not answered since"
NOT_HEARD_OF = (
    "left: its SuperLink hears nothing of it; it has ended, has no network, or is refused for its "
    "key or its clock: its own log says which"
)
NOT_AWAITED = "not waited for: it missed its last deadline, and all others had answered"


@dataclass
class Waiting:
    """What decides when a question is over.

    Attributes:
        began: when it was put, by the grid's clock.
        most: seconds that it may take, whatever else.
        auto: what others take decides, up to `most`.
        size: bytes of the question.
        known: seconds in which others answered such a question the last time.
        asked: the nodes that are asked.
        late: nodes that missed a deadline and have not answered such a question since: where others
            are asked, nobody waits for these alone.
        took: seconds in which nodes have answered this question.
    """

    began: float
    most: float
    auto: bool = False
    size: int = 0
    known: Sequence[float] = ()
    asked: Set[int] = frozenset()
    late: Set[int] = frozenset()
    took: list[float] = field(default_factory=list)

    def limit(self) -> float:
        """Seconds that the question may take, by what is known now."""
        if not self.auto:
            return self.most
        half = self.took and 2 * len(self.took) >= len(self.asked)
        seconds = self.took if half else self.known
        wanted = FACTOR * median(seconds) if seconds else UNKNOWN_YET + 2 * self.size / BANDWIDTH
        return min(self.most, max(SHORTEST, wanted))

    def over(self, now: float, awaited: Set[int]) -> str:
        """Why these nodes are not waited for any longer; "" where they are."""
        if now >= self.began + (limit := self.limit()):
            return f"no reply within {limit:.4g} s"
        alone = awaited <= self.late and not self.asked <= self.late
        return NOT_AWAITED if awaited and alone else ""


def left_on(grid: Grid) -> str:
    """Why a node that is not there any more does not answer."""
    return NOT_HEARD_OF if networked(grid) else "left"


_NODE_UNAVAILABLE = 5  # of Flower's error codes, which are not public


def error_said(error: Error) -> str:
    """What Flower says where nothing came of a message; of a node that is gone, our words."""
    return NOT_HEARD_OF if error.code == _NODE_UNAVAILABLE else plain(error.reason)
