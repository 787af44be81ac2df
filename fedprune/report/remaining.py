"""How much of a run is still to come: rounds, and about how long they take."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from fedprune.config import RunConfig
from fedprune.config.options import LOCAL, OWN_START
from fedprune.report.reading import duration
from fedprune.server.rows import Row


def rounds_left(config: RunConfig, arm: str, round_: int) -> int:
    """The rounds that are still to be played, of this arm and of those after it.

    Baselines begin after the warm-up that all arms share, but for those with a beginning of their
    own. In the arm local-only, which has no rows, one client after the other plays all rounds: a
    round of one counts as its part of a cohort. Of a run that ends early, by its patience or its
    budget, these are more than come.

    `round_`: its last that is over.
    """
    arms = list(config.baselines)
    later = arms[arms.index(arm) + 1 :] if arm in arms else arms
    return config.rounds - round_ + sum(_rounds_in(config, each) for each in later)


def _rounds_in(config: RunConfig, baseline: str) -> int:
    if baseline == LOCAL:
        return ceil(config.rounds * config.clients / config.cohort)
    return config.rounds - (0 if baseline in OWN_START else config.warmup)


@dataclass
class RoundTimes:
    """What rounds have taken so far in this process."""

    config: RunConfig  # of the run
    seconds: float = 0.0  # of all rounds that were played
    rounds: int = 0  # how many these are

    def left(self, row: Row, seconds: float) -> str:
        """After a round: about how long the rest takes, in words; "" after the last one.

        Rounds are taken to be alike. Rows of a warm-up that was shared are not counted.
        """
        shared = [arm for arm in self.config.baselines if arm not in OWN_START]
        if row["arm"] not in shared or row["round"] > self.config.warmup:
            self.seconds, self.rounds = self.seconds + seconds, self.rounds + 1
        left = rounds_left(self.config, row["arm"], row["round"])
        if not left or not self.rounds:
            return ""
        return f"about {duration(left * self.seconds / self.rounds)} left"
