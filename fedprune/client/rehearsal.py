"""Before round one: a small batch goes through all that clients will be asked, and is checked.

Where model and data meet (`fedprune.client.host.build_host`) a copy of the model answers for a few
examples of one partition as a client would: loss, measuring, scoring, tuning. What a task says of
itself is held against what came out. Nothing is kept: weights, buffers and generators of the model
that a run uses are as they were. Nothing leaves the process but the one line of a refusal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from torch import nn

from fedprune.client.trial_answers import (
    try_batched,
    try_measuring,
    try_score,
    try_sums,
    try_tuning,
)
from fedprune.client.trial_client import EXAMPLES_TRIED, TrialClient, trial_client
from fedprune.client.trial_models import try_inputs, try_losses, try_vocabulary
from fedprune.config import RunConfig
from fedprune.learning.local_training import Train, tune
from fedprune.options.refusal import ConfigError, Refused
from fedprune.randomness import seeded
from fedprune.runtime.guarding import allowance, guarded
from fedprune.runtime.process import put_back
from fedprune.structure.layout import Layout
from fedprune.tasks.later import rows_counted
from fedprune.tasks.options import Data
from fedprune.tasks.task import Shard, Task
from fedprune.tensors.models import load_into
from fedprune.tensors.named import Tensors

PARTITIONS_TRIED = 3
"""How many partitions are tried: one that fails by itself is no reason not to run."""

REHEARSAL_SECONDS = 60.0
"""Seconds that the rehearsal has at least: a short ``--timeout`` is about answers alone."""


def try_out(
    task: Task,
    config: RunConfig,
    model: nn.Module,
    layout: Layout,
    shards: Mapping[int, Shard],
    train: Train = tune,
    held: Tensors | None = None,
) -> None:
    """Try everything that a run will ask on a few examples.

    `held`: the model's weights where they are read from files: then no copy of it is made.

    Raises:
        ConfigError: the task, the model and the data do not fit together, or a score's statistics
            are not to be had of this model.
    """
    with put_back(), seeded(config.seed, "rehearsal"):
        failed: list[Exception] = []
        partitions, share = _partitions(shards), allowance(max(config.timeout, REHEARSAL_SECONDS))
        for i, partition in enumerate(partitions):
            trial = trial_client(task, config, model, layout, shards, partition, train, held)
            try:
                guarded(functools.partial(_tried, trial), share(len(partitions) - i))
                return
            except Exception as error:  # whatever code of a user's own raises
                failed.append(error)
            finally:
                if held is not None:
                    load_into(model, held)
        raise ConfigError(_line(failed[0], "the rehearsal", config, model)) from failed[0]


def _line(error: Exception, what: str, config: Data, model: nn.Module) -> str:
    """One line about an error in a part of the rehearsal, in the form of all of them."""
    line = " ".join(str(error).split())[:400]
    if "; allowed: " in line:
        return line
    kind = error.field if isinstance(error, Refused) else type(error).__name__
    reason = f"{what} of {EXAMPLES_TRIED} examples fails{_within(error, model)}: {kind}: {line}"
    return f"task={config.task!r}: {reason}; allowed: a model, data and a score that fit together"


def _within(error: Exception, model: nn.Module) -> str:
    """Which layer of the model raised an error, the innermost: its path and kind; "" if none."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, frame = "", error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_locals.get("self")
        if id(module) in paths:
            found = f" in {paths[id(module)] or 'its model'} ({type(module).__name__})"
        frame = frame.tb_next
    return found


def _partitions(shards: Mapping[int, Shard]) -> list[int]:
    """Partitions to try: those with more than one example first, as BatchNorm needs two."""
    counts = rows_counted(shards)
    by_size = sorted(shards, key=lambda p: (counts[p].train < 2, p))
    return by_size[:PARTITIONS_TRIED]


def _tried(trial: TrialClient) -> None:
    """Everything that a run will ask of a client, once."""
    for what, step in _STEPS.items():
        try:
            step(trial)
        except Exception as error:
            line = _line(error, what, trial.client.config, trial.client.model)
            raise ConfigError(line) from error


_STEPS: dict[str, Callable[[TrialClient], None]] = {
    "the loss": try_losses,
    "a smaller vocabulary": try_vocabulary,
    "measuring": try_measuring,
    "watching layers": try_inputs,
    "scoring": try_score,
    "tuning": try_tuning,
    "training together": try_batched,
    "summing inputs": try_sums,
}
