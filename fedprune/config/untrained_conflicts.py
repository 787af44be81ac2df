"""What says nothing where nobody trains: ``--local-steps 0`` and no ``--local-epochs``."""

from __future__ import annotations

from fedprune.config.defaults import method_given, usual_of
from fedprune.config.sections import AllOptions
from fedprune.learning.options import Averaging, Tuning, trains
from fedprune.options.option import options_of
from fedprune.options.refusal import OUT, Conflict
from fedprune.options.section import with_derived
from fedprune.scores.score import Score
from fedprune.selection.options import followed_method
from fedprune.tasks.task import Task

_READ = {"local_steps", "local_epochs", "batch_size", "score_batch", "weighting"}
"""Options of training and averaging that scoring and measuring read too, or that say this."""

_OTHERS = {"score_during": "pass", "error_feedback": False}
"""Of other sections, with the only value that goes without training."""


def untrained_conflicts(c: AllOptions, score: Score, task: Task) -> list[Conflict]:
    """Every option that only training reads and that has another value than it has by default."""
    if trains(c):
        return []
    training = {*options_of(Tuning), *options_of(Averaging)} - _READ
    method = method_given(vars(c))
    its = {**method.usual, **method.sets} if method and method.untrained else {}
    others = {key: value for key, value in vars(c).items() if key not in training}
    others |= {key: value for key, value in its.items() if key in training}
    usual = with_derived(AllOptions, others, usual_of(task, score))
    wanted = {key: usual[key] for key in sorted(training)}
    wanted |= {**_OTHERS, "method": c.method if its else followed_method(c)}
    why = "nobody trains (--local-steps 0, no --local-epochs)"
    found: list[Conflict] = [
        (key.replace("_", "-"), getattr(c, key) != value, why, f"{OUT}, or steps above 0")
        for key, value in wanted.items()
    ]
    nothing = c.sparsity == 0.0 and not c.reduce
    return [("local-steps", nothing, "nobody trains and nothing is pruned", "above 0"), *found]
