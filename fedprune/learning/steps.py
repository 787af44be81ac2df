"""The steps that a client takes in a round: which of its examples are in which batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedprune.learning.options import Tuning
from fedprune.tasks.task import Part, examples
from fedprune.tensors.models import found_in


def step_batches(
    part: Part, config: Tuning, gen: torch.Generator, *, alone: bool = True
) -> Iterator[list[Part]]:
    """The steps of a round, each a list of at most `accumulate` batches."""
    for several in step_rows(examples(part), config, gen, alone=alone):
        yield [{name: t[chosen] for name, t in part.items()} for chosen in several]


def step_rows(
    size: int, config: Tuning, gen: torch.Generator, *, alone: bool = True
) -> Iterator[list[Tensor]]:
    """Which of so many examples are in the batches of each step, as their places.

    `local_epochs` shuffled passes, or `local_steps` steps of such; none over no examples. Where a
    row cannot be `alone` in a batch, a last one that is left over joins the batch before it.
    """
    passes = 0
    steps = 0
    while size and (passes < config.local_epochs or steps < config.local_steps):
        order = torch.randperm(size, generator=gen)
        rows = list(order.split(config.batch_size))
        if not alone and len(rows) > 1 and len(rows[-1]) == 1:
            rows[-2:] = [order[-config.batch_size - 1 :]]
        for start in range(0, len(rows), config.accumulate):
            if config.local_steps and steps == config.local_steps:
                return
            yield rows[start : start + config.accumulate]
            steps += 1
        passes += 1


def steps_taken(local_steps: int, part: float) -> int:
    """How many steps a client takes that takes a part of its steps: whole ones, one at least."""
    return max(1, math.floor(local_steps * part + 1e-9))


def examples_trained_on(size: int, config: Tuning) -> int:
    """How many examples a client with so many trains on in a round, one each time it is in a batch.

    Where a row that cannot be alone joins another batch, up to one more for each pass.
    """
    if config.local_epochs or not size:
        return config.local_epochs * size
    of_step = config.batch_size * config.accumulate
    passes, rest = divmod(config.local_steps, math.ceil(size / of_step))
    return passes * size + min(size, rest * of_step)


def can_be_alone(model: nn.Module) -> bool:
    """Whether the model trains on a batch of one row: BatchNorm1d has no variance of one value."""
    return not (isinstance(model, nn.BatchNorm1d) or found_in(model).has(nn.BatchNorm1d))
