"""A question on its way to a secure sum: who dropped out, what it cost, why a try failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fedprune.config import RunConfig
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Question
from fedprune.secagg.messages import Call, Enclosure, StageReply, Transport, call_for
from fedprune.secagg.packets import call_packet
from fedprune.structure.layout import Layout

_Said = TypeVar("_Said")


class VoidTry(Exception):
    """A try that came to nothing: why, and who could take part in the next one."""

    def __init__(self, reason: str, left: Collection[int]) -> None:
        super().__init__(reason)
        self.left = tuple(sorted(left))


@dataclass
class SumCourse:
    """A question on its way to a sum, and what has come of it so far.

    Attributes:
        question: what is asked.
        layout: of the model that is asked about.
        config: complete configuration.
        transport: puts a stage to partitions.
        failures: who dropped out, and why.
        coarse: field to the steps by which its range was widened.
        notices: who lied in a way that changed no sum.
        up: bytes that devices would have sent.
        down: bytes that they would have received.
    """

    question: Question
    layout: Layout
    config: RunConfig
    transport: Transport
    failures: dict[int, Failure] = field(default_factory=dict)
    coarse: Mapping[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    up: int = 0
    down: int = 0

    def put(
        self, call: Call, partitions: Collection[int], enclosed: Enclosure | None = None
    ) -> StageReply:
        """Put a stage to partitions."""
        asked = sorted(partitions)
        self.down += sum(call_packet(call_for(call, [p])).size() for p in asked)
        if enclosed is not None:
            self.down += enclosed.sent.size(asked)
        reply = self.transport(call, asked, enclosed)
        self.up += reply.bytes_up
        self.down += reply.resent
        for failure in reply.failures:
            where = failure.field or call.stage
            self.failures[failure.partition] = replace(
                failure, phase=self.question.kind, field=where
            )
        return reply

    def without(
        self, wrong: Mapping[int, str], said: Mapping[int, _Said], stage: str
    ) -> dict[int, _Said]:
        """What was said in a stage but for what is wrong of it, whose clients have failed."""
        kind = self.question.kind
        self.failures |= {p: Failure(p, kind, stage, why) for p, why in wrong.items()}
        return {p: each for p, each in said.items() if p not in wrong}

    def closed(
        self, aggregate: Aggregate | None, partitions: Sequence[int], tries: int, reason: str = ""
    ) -> Aggregate:
        """The sum with who is not in it and what it cost; without one, everyone has failed."""
        found = aggregate or Aggregate()
        missing = [p for p in sorted(partitions) if p not in found.answered]
        why = reason or "dropped out"
        kind = self.question.kind
        return replace(
            found,
            failures=tuple(self.failures.get(p, Failure(p, kind, "secure", why)) for p in missing),
            bytes_up=self.up,
            bytes_down=self.down,
            tries=tries,
            notices=tuple(self.notices),
        )


class NarrowRange(Exception):
    """A client's numbers had no room, and nothing was opened: how wide ranges are the next time."""

    def __init__(self, coarse: Mapping[str, int]) -> None:
        super().__init__("ranges are too narrow")
        self.coarse = coarse
