"""Answers added up: what a sum holds, and how one answer is added to those before it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedprune.config.kinds import KINDS
from fedprune.protocol.failures import Failure

Loud = tuple[tuple[int, float], ...]
"""Partitions, and the size of the largest value of each one's change."""


@dataclass(frozen=True)
class PhaseCost:
    """What a phase took simulated devices (`fedprune.server.fleet`).

    Seconds until the last answer that counts, or the deadline; joules of all who were asked and
    answered; bytes down to each of them and up from each who answered, on average.
    """

    seconds: float
    joules: float
    down: float
    up: float


@dataclass(frozen=True)
class Aggregate:
    """Answers added up, in the order of partitions and then of hosts.

    Attributes:
        total: flat float64 Σ weight · values; None if nobody answered.
        weight: Σ weight.
        totals: summed totals.
        votes: flat counts of votes per kept coordinate, integers at least of the `count_type` of
            those who answered, or None.
        answered: the partitions that count.
        failures: those that do not.
        bytes_up: what the answers that came weighed on the wire.
        bytes_down: what the question weighed for everyone who was asked.
        statistics: flat float64 sum of those collected while tuning, or None.
        held: flat float64 Σ weight · votes, for means over those who kept a coordinate, or None.
        singles: (clients, values) float32, the values one by one, where a rule needs them, or None.
        tries: how often a secure sum was begun; 0: answers were added in the open.
        norms: of the values, one by one as `answered`, where a bound is on them; else empty.
        loud: partition and size of the largest value of changes that hold one beyond `LOUD`.
        notices: what is worth knowing about who was asked, or could not be.
        cost: of simulated devices, where there are some.
        resampled: the totals in every resample of clients, flat (`fedprune.tasks.resampling`), or
            None.
        fresh: the total is in nobody else's hands, so that it may be written over.
    """

    total: Tensor | None = None
    weight: float = 0.0
    totals: dict[str, float] = field(default_factory=dict)
    votes: Tensor | None = None
    answered: tuple[int, ...] = ()
    failures: tuple[Failure, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    statistics: Tensor | None = None
    held: Tensor | None = None
    singles: Tensor | None = None
    tries: int = 0
    norms: tuple[float, ...] = ()
    loud: Loud = ()
    notices: tuple[str, ...] = ()
    cost: PhaseCost | None = None
    resampled: Tensor | None = None
    fresh: bool = False

    def without_tensors(self) -> Aggregate:
        """The same without what is as large as a model."""
        return replace(self, total=None, votes=None, statistics=None, held=None, singles=None)


def count_type(most: int) -> torch.dtype:
    """The smallest integer type that holds counts from 0 to so many."""
    types = (torch.uint8, torch.int16, torch.int32, torch.int64)
    return next(dtype for dtype in types if most <= torch.iinfo(dtype).max)


LOUD = 1e3
"""Size of a change's largest value from which it is remembered whose it is."""

LOUDEST = 1e9
"""The same of statistics for a score, which are sums over a client's examples."""


def loud_from(kind: str) -> float:
    """The size from which it is remembered who sent such a value: of changes, and of statistics."""
    if KINDS[kind].changes:
        return LOUD
    return LOUDEST if KINDS[kind].values == "statistics" else math.inf


def loud_in(values: Tensor, of: Iterable[int], weight: float = 1.0, least: float = LOUD) -> Loud:
    """Whose values these are and how large, if one is beyond `least`; nothing if not."""
    size = max(map(abs, map(float, torch.aminmax(values)))) / weight if values.numel() else 0.0
    return tuple((p, size) for p in of) if size > least else ()
