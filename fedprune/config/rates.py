"""The learning rate of a round."""

from __future__ import annotations

import math

from fedprune.config.sections import AllOptions
from fedprune.selection.options import Pruning
from fedprune.selection.schedules import Steps, prunes_at, schedules_of


def learning_rate(config: AllOptions, round_: int) -> float:
    """The clients' learning rate in a round (1 to `rounds`), falling towards 0 after the last.

    With `lr_rewind` it does so from one pruning to the next, and begins anew at each: learning
    rate rewinding, Renda et al. 2020, arXiv 2003.02389, sect. 2, to the beginning of the schedule.
    There each retraining is as long as one wishes; here they share the rounds there are. A pruning
    that is made up for later, because too few answered, does not count.
    """
    first, after = _stretch(config, round_) if config.lr_rewind else (1, config.rounds + 1)
    done = (round_ - first) / (after - first)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return config.lr * factor[config.lr_schedule]


def _stretch(config: AllOptions, round_: int) -> tuple[int, int]:
    """The first round of the stretch between prunings that a round is in, and the one after."""
    last = config.rounds + 1
    first = max((r for r in range(1, round_ + 1) if prunes_in(config, r)), default=1)
    return first, min((r for r in range(round_ + 1, last) if prunes_in(config, r)), default=last)


def prunes_in(config: AllOptions, round_: int) -> bool:
    """Whether the schedule prunes in a round."""
    return prunes_at(config.schedule, round_, steps_of(config), schedules_of(config.plugin))


def steps_of(config: Pruning) -> Steps:
    """The rounds of the schedule's steps."""
    return Steps(config.warmup + 1, config.end, config.frequency)
