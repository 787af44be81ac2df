"""Where a client sits: its shard and the resident model of its process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fedprune.config import RunConfig
from fedprune.learning.local_training import Train, tune
from fedprune.structure.layout import Layout
from fedprune.tasks.task import Part, Shard, Task, batches


@dataclass(frozen=True)
class ClientContext:
    """Where one client sits: everything its answer depends on beside the question.

    Attributes:
        partition: which one it is.
        shard: its private data.
        model: the process's resident model; its values are overwritten.
        task: the loss and what it counts.
        config: complete configuration.
        layout: the model's layout.
        device: where the model is.
        tuned: the same model, compiled where that was asked for.
        teacher: a model to learn from, in eval mode beside it, or None.
        train: how it tunes.
    """

    partition: int
    shard: Shard
    model: nn.Module
    task: Task
    config: RunConfig
    layout: Layout
    device: torch.device
    tuned: nn.Module
    teacher: nn.Module | None = None
    train: Train = tune

    def moved(self, parts: Iterator[Part]) -> Iterator[Part]:
        """The batches on the model's device."""
        for part in parts:
            yield {name: t.to(self.device) for name, t in part.items()}


@dataclass(frozen=True)
class Batches:
    """A part in batches on the model's device, as often as one likes."""

    client: ClientContext
    part: Part

    def __iter__(self) -> Iterator[Part]:
        return self.client.moved(batches(self.part, self.client.config.score_batch))
