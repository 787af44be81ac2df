"""How sparse when: the fraction of the final sparsity that is reached at each pruning step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedprune.options.plugins import table_in


@dataclass(frozen=True)
class Schedule:
    """`fraction(i, n, final)`: the part of the final sparsity in force after step i of n, from 1.

    It never falls with i, and fraction(n, n, final) is exactly 1.
    """

    fraction: Callable[[int, int, float], float]
    summary: str  # one line for ``--list``
    # after the first step, which reaches the final sparsity, the other steps drop weights and
    # regrow as many (`fedprune.selection.regrowth`)
    exchanges: bool = False
    # how far a step goes is chosen when it is due (`fedprune.selection.ladder`); the fraction says
    # only in which rounds there are steps
    chosen: bool = False


def _one_shot(_step: int, _steps: int, _final: float) -> float:
    return 1.0


def _linear(step: int, steps: int, _final: float) -> float:
    return step / steps


def _cubic(step: int, steps: int, _final: float) -> float:
    """Zhu & Gupta 2017, arXiv 1710.01878, eq. 1 with s_0 = 0, after their i-th interval."""
    return 1.0 - (1.0 - step / steps) ** 3


def _exponential(step: int, steps: int, final: float) -> float:
    """1 - (1 - final)^(i/n) of 1: every step removes the same part of what is left.

    Frankle & Carbin 2019, arXiv 1803.03635, section 2: p^(1/n) of the weights in each of n rounds.
    """
    if step == steps or final in (0.0, 1.0):
        return 1.0 if final else step / steps
    return -math.expm1(step / steps * math.log1p(-final)) / final


SCHEDULES: dict[str, Schedule] = {
    "one-shot": Schedule(_one_shot, "everything in the first step"),
    "linear": Schedule(_linear, "the same amount in every step"),
    "cubic": Schedule(
        _cubic, "much at first, less and less later (Zhu & Gupta 2017, arXiv 1710.01878)"
    ),
    "exponential": Schedule(
        _exponential,
        "the same part of what is left in every step (Frankle & Carbin 2019, arXiv 1803.03635)",
    ),
    "regrow": Schedule(
        _one_shot,
        "everything in the first step, then drop and regrow (Evci et al. 2020, arXiv 1911.11134)",
        exchanges=True,
    ),
    "adaptive": Schedule(
        _linear,
        "as far as the clients' validation loss stays within --tolerance, at most to --sparsity",
        chosen=True,
    ),
}


@dataclass(frozen=True)
class Steps:
    """Rounds in which a schedule prunes: start, start + frequency, ... before end, and end."""

    start: int
    end: int
    frequency: int

    def done(self, round_: int) -> tuple[int, int]:
        """How many steps are done after `round_`, and how many there are.

        Raises:
            ValueError: `end` before `start`, or a `frequency` below 1.
        """
        rounds = _rounds(self)
        return bisect_right(rounds, round_), len(rounds)


def sparsity_at(
    schedule: str,
    round_: int,
    steps: Steps,
    final: float,
    table: Mapping[str, Schedule] = SCHEDULES,
) -> float:
    """The sparsity in force after `round_`: 0 before the first step, constant between them.

    The last step reaches `final` exactly. Step i applies fraction(i, n, final), so that the first
    one prunes already, where Zhu & Gupta's t_0 does not.

    Raises:
        ValueError: no such schedule, or as `Steps.done`.
    """
    return final * _reached(schedule, *steps.done(round_), final, table)


def prunes_at(
    schedule: str, round_: int, steps: Steps, table: Mapping[str, Schedule] = SCHEDULES
) -> bool:
    """Whether `round_` is a step that changes the masks (of one-shot, only the first does)."""
    step, n = steps.done(round_)
    # Any final sparsity would do: whether a step raises it does not depend on how high it gets.
    reached, before = (_reached(schedule, i, n, 0.5, table) for i in (step, step - 1))
    due = step > 0 and steps.done(round_ - 1)[0] < step
    return due and (reached > before or table[schedule].exchanges)


def exchange_fraction(initial: float, step: int, steps: int) -> float:
    """The part of the kept weights that step 0 .. `steps` exchanges: from `initial` down to 0.

    initial / 2 (1 + cos(pi t / T)): Dettmers & Zettlemoyer 2019, arXiv 1907.04840, in
    the form of Evci et al. 2020 (RigL), arXiv 1911.11134, section 3.

    Raises:
        ValueError: a step outside of 0 to `steps`, or no steps.
    """
    if not 0 <= step <= steps or steps < 1:
        raise ValueError(f"step must be in 0 to {steps}, with 1 step or more, got {step}")
    return initial / 2.0 * (1.0 + math.cos(math.pi * step / steps))


def steps_within(before: float, after: float, n: int) -> list[float]:
    """The sparsities after each of `n` prunings within one round, the last exactly `after`.

    The density falls by the same factor each time: Tanaka et al. 2020 (SynFlow), arXiv 2006.05467,
    algorithm 1; de Jorge et al. 2021 (FORCE, iterative SNIP), arXiv 2006.09081.

    Raises:
        ValueError: sparsities that fall or are outside of 0 to 1, or no steps.
    """
    if not 0.0 <= before <= after <= 1.0:
        raise ValueError(f"sparsities must rise within [0, 1], got {before} and {after}")
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    if before == after:
        return [after] * n
    factor = (1.0 - after) / (1.0 - before)
    middle = [1.0 - (1.0 - before) * factor ** (i / n) for i in range(1, n)]
    return [*(min(max(s, before), after) for s in middle), after]


def _rounds(steps: Steps) -> list[int]:
    if steps.end < steps.start:
        raise ValueError(f"end must be at or after start {steps.start}, got {steps.end}")
    if steps.frequency < 1:
        raise ValueError(f"frequency must be 1 or more, got {steps.frequency}")
    return [*range(steps.start, steps.end, steps.frequency), steps.end]


def _reached(
    schedule: str, step: int, steps: int, final: float, table: Mapping[str, Schedule]
) -> float:
    if schedule not in table:
        allowed = ", ".join(table)
        raise ValueError(f"unknown schedule {schedule!r}: allowed are {allowed}")
    return table[schedule].fraction(step, steps, final) if step > 0 else 0.0


def schedules_of(plugin: str) -> dict[str, Schedule]:
    """Every schedule by name; a plug-in's (its table ``SCHEDULES``) come last.

    Raises:
        ImportError: one of a plug-in does more than say how much goes when.
    """
    own: dict[str, Schedule] = table_in(plugin, "SCHEDULES", Schedule)
    more = [name for name, schedule in own.items() if schedule.exchanges or schedule.chosen]
    if more:
        raise ImportError(
            f"plugin={plugin!r}: schedule {more[0]!r} exchanges weights or is chosen, as only "
            "regrow and adaptive are; allowed: fractions alone, or a Method in METHODS"
        )
    return {**SCHEDULES, **own}
