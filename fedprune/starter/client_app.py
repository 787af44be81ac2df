"""The Flower ClientApp: what a client of a simulation, or a device, runs. Yours to edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.engines.flower.client_app import client_app
from fedprune.learning.local_training import Tuned
from fedprune.learning.options import Tuning
from fedprune.starter.task import TASK
from fedprune.tasks.task import Part, Task

NOT_HERE = ("watch", "distillation", "backward", "correction", "manner")
"""What options (``score-during``, ``distil``, ``dp``, ``scaffold``, some methods) ask a training
for beside what the one below does."""


def train(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    steps: Iterator[list[Part]],
    task: Task,
    lr: float,
    tuning: Tuning,
    **more: Any,
) -> Tuned:
    """One client's training in one round, in place. YOUR OWN TRAINING goes here.

    A step is a list of batches, and a batch the tensors that `task.py` made. `masks` are True where
    a weight is kept, by parameter name: what is removed must stay 0.0. Gives back the loss, summed
    over all examples that were trained on, and how many they were.
    """
    if asked := [name for name in NOT_HERE if more.get(name) is not None]:
        raise ValueError(f"train: an option asks for {asked[0]}; allowed: options that do not")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=tuning.momentum or 0.0)
    total, count = 0.0, 0
    model.train()
    for step in steps:
        optimizer.zero_grad()
        for batch in step:
            loss = task.loss(model, batch)
            (loss.total / loss.count / len(step)).backward()
            total, count = total + loss.total.item(), count + loss.count
        optimizer.step()
        keep_removed(model, masks)
    return Tuned(total, count)


@torch.no_grad()
def keep_removed(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set every removed weight to 0.0."""
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)


app = client_app(train, task=TASK)
