"""What says nothing where nobody trains: ``--local-steps 0`` and no ``--local-epochs``."""

from __future__ import annotations

from typing import Any

from fedprune.config.defaults import usual_of
from fedprune.config.sections import AllOptions
from fedprune.learning.options import Averaging, Tuning
from fedprune.options.refusal import OUT, Conflict
from fedprune.options.section import options_of
from fedprune.scores.score import Score
from fedprune.selection.options import followed_method
from fedprune.tasks.task import Task

_READ = {"local_steps", "local_epochs", "batch_size", "score_batch", "weighting"}
"""Options of training and averaging that scoring and measuring read too, or that say this."""

_OTHERS: dict[str, list[Any]] = {"score_during": ["pass"], "error_feedback": [False]}
"""Of other sections, with the only value that goes without training."""


def untrained_conflicts(c: AllOptions, score: Score, task: Task) -> list[Conflict]:
    """Every option that only training reads and that has another value than it has by default."""
    usual = usual_of(task, score)
    known = {**options_of(Tuning), **options_of(Averaging)}
    as_ever: dict[str, list[Any]] = {
        key: [usual[key]] if key in usual else [option.default, option.unread]
        for key, option in known.items()
        if key not in _READ
    }
    as_ever |= {**_OTHERS, "method": [followed_method(c)]}
    why = "nobody trains (--local-steps 0, no --local-epochs)"
    found: list[Conflict] = [
        (key.replace("_", "-"), getattr(c, key) not in values, why, f"{OUT}, or steps above 0")
        for key, values in as_ever.items()
    ]
    nothing = c.sparsity == 0.0 and not c.reduce
    return [("local-steps", nothing, "nobody trains and nothing is pruned", "above 0"), *found]
