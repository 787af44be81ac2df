"""How sparse when: the fraction of the final sparsity that is reached at each pruning step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """`fraction(i, n)`: the part of the final sparsity in force after step i of n, i = 1 .. n.

    It never falls with i, and fraction(n, n) is exactly 1.
    """

    fraction: Callable[[int, int], float]
    summary: str


def _one_shot(_step: int, _steps: int) -> float:
    return 1.0


def _linear(step: int, steps: int) -> float:
    return step / steps


def _cubic(step: int, steps: int) -> float:
    """Zhu & Gupta 2017, arXiv 1710.01878, eq. 1 with s_0 = 0, after their i-th interval."""
    return 1.0 - (1.0 - step / steps) ** 3


SCHEDULES: dict[str, Schedule] = {
    "one-shot": Schedule(_one_shot, "everything in the first step"),
    "linear": Schedule(_linear, "the same amount in every step"),
    "cubic": Schedule(
        _cubic, "much at first, less and less later (Zhu & Gupta 2017, arXiv 1710.01878)"
    ),
}


def sparsity_at(
    schedule: str, round_: int, *, start: int, end: int, frequency: int, final: float
) -> float:
    """The sparsity in force after `round_`: 0 before `start`, constant between the steps.

    The steps are the rounds start, start + frequency, ... before `end`, and `end` itself, which
    reaches `final` exactly. Step i of them applies fraction(i, n), so that the first one prunes
    already, where Zhu & Gupta's t_0 does not.

    Raises:
        ValueError: no such schedule, `end` before `start`, or a `frequency` below 1.
    """
    steps = _steps(start, end, frequency)
    return final * _reached(schedule, bisect_right(steps, round_), len(steps))


def prunes_at(schedule: str, round_: int, *, start: int, end: int, frequency: int) -> bool:
    """Whether `round_` is a step that raises the sparsity (of one-shot, only the first does).

    Raises:
        ValueError: as in `sparsity_at`.
    """
    steps = _steps(start, end, frequency)
    step = bisect_right(steps, round_)
    reached = _reached(schedule, step, len(steps))
    return round_ in steps and reached > _reached(schedule, step - 1, len(steps))


def _steps(start: int, end: int, frequency: int) -> list[int]:
    if end < start:
        raise ValueError(f"end must be at or after start {start}, got {end}")
    if frequency < 1:
        raise ValueError(f"frequency must be 1 or more, got {frequency}")
    return [*range(start, end, frequency), end]


def _reached(schedule: str, step: int, steps: int) -> float:
    if schedule not in SCHEDULES:
        allowed = ", ".join(SCHEDULES)
        raise ValueError(f"unknown schedule {schedule!r}: allowed are {allowed}")
    return SCHEDULES[schedule].fraction(step, steps) if step > 0 else 0.0
