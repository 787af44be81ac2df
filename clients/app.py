"""The Flower ClientApp: what a device, or a worker of a simulation, runs. Yours to edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fedprune.engines.flower.client_app import client_app
from fedprune.learning.local_training import Tuned, tune
from fedprune.learning.options import Tuning
from fedprune.tasks.task import Part, Task


def train(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    steps: Iterator[list[Part]],
    task: Task,
    lr: float,
    tuning: Tuning,
    **more: Any,
) -> Tuned:
    """One client's training in one round. YOUR OWN TRAINING goes here.

    It changes the model in place; what it changed on the kept weights is the client's answer. A
    step is a list of batches, whose gradients make one step of the optimizer; the loss of a batch
    is ``task.loss(model, batch).total``, over ``task.labels(batch)`` labels. Give back the summed
    loss and the labels that it is over. `more` is what options ask for beside that (see
    `fedprune.learning.local_training.tune`); with ``--dp example`` take the gradients of every step
    by ``more["backward"](step)``, which hides examples: an answer without it is refused.
    """
    return tune(model, masks, steps, task, lr, tuning, **more)


app = client_app(train)
