"""Where a client sits: its shard and the resident model of its process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from fedprune.client.memory import Recollection
from fedprune.config import RunConfig
from fedprune.learning.local_training import Train, tune
from fedprune.structure.layout import Layout
from fedprune.tasks.task import Part, Shard, Task, batches

log = logging.getLogger("fedprune")


@dataclass(frozen=True)
class ClientContext:
    """Where one client sits: everything its answer depends on beside the question."""

    partition: int
    shard: Shard  # its private data
    model: nn.Module  # the process's resident model; its values are overwritten
    task: Task  # the loss and what it counts
    config: RunConfig
    layout: Layout
    device: torch.device  # where the model is
    tuned: nn.Module  # the same model, compiled where that was asked for
    teacher: nn.Module | None = None  # a model to learn from, in eval mode beside it, or None
    train: Train = tune  # how it tunes
    said: set[str] = field(default_factory=set)  # what was said already, see `warn_once`
    memory: Recollection = field(default_factory=Recollection)  # what it remembers
    # the model may compute with a question's own tensors, where nothing writes to them
    lends: bool = False

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


def warn_once(error: BaseException, instead: str, said: set[str]) -> None:
    """Say where the clients are, once, what their code raised and what leaves them instead.

    Not of whom, and not how often: what noise hides is not to be read off a log either.
    """
    text = f"clients' code raised {type(error).__name__}: {instead}; said once"
    if text not in said:
        said.add(text)
        log.warning(text)
