"""A message on its way to a worker, and what may become of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

AHEAD = 2**28
"""Bytes of replies that may wait for those before them to be added up."""


@dataclass(frozen=True)
class LostJob:
    """Why nothing came of a job, in a line.

    Its worker's node is `gone`, or its worker was killed for want of `memory`.
    """

    reason: str
    gone: bool = False
    memory: bool = False


@dataclass(eq=False)
class Job:
    """A message.

    Attributes:
        message: as Flower has it.
        head: its small parts, see `fedprune.engines.ray.message_parts`.
        buffers: its large ones, in Ray's object store.
        partitions: what it is about.
        size: bytes of a question as large, as sums of its values in float64 are.
        place: in the order in which replies are added up.
        tries: how often it was lost.
        alone: it is to be the only one at work on its node.
    """

    message: Message
    head: bytes
    buffers: list[Any]
    partitions: tuple[int, ...]
    size: int = 0
    place: int = 0
    tries: int = 0
    alone: bool = False


@dataclass
class Pace:
    """How long partitions took, by kind of message: the longest work goes first.

    Attributes:
        labels: what each partition trains on, for those that have not been asked yet.
        seconds: what partitions took, by kind of message.
        sizes: bytes of the largest reply so far, likewise.
    """

    labels: dict[int, int]
    sizes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)

    def expected(self, job: Job) -> tuple[float, int]:
        """What orders jobs: the seconds of its partitions before, then their labels."""
        known = self.seconds.get(job.message.metadata.message_type, {})
        typical = sum(known.values()) / len(known) if known else 0.0
        seconds = sum(known.get(p, typical) for p in job.partitions)
        return seconds, sum(self.labels.get(p, 0) for p in job.partitions)

    def ahead(self, job: Job) -> int:
        """How many replies like this job's may wait for their turn: what holds `AHEAD` bytes."""
        return AHEAD // max(1, self.sizes.get(job.message.metadata.message_type, job.size))

    def took(self, job: Job, seconds: float, size: int) -> None:
        """Note how long a job took, and the bytes of its reply."""
        kind = job.message.metadata.message_type
        self.sizes[kind] = max(size, self.sizes.get(kind, 0))
        known = self.seconds.setdefault(kind, {})
        known |= dict.fromkeys(job.partitions, seconds / max(1, len(job.partitions)))
