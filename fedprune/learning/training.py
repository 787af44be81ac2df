"""Masked fine-tuning on one client: a removed weight is exactly 0.0 after every step.

The optimizers are torch's own. A weight stays zero because its gradient is set to zero before
each step and everything the optimizer keeps of it starts at zero: momentum, Adam's moments and
weight decay of a zero weight are then zero too. (Masking the gradient without starting from fresh
state lets Adam move a pruned weight by several learning rates.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedprune.tasks.task import Loss, Part, batches, examples

if TYPE_CHECKING:
    from fedprune.config import RunConfig

Parameters = list[nn.Parameter]


def _sgd(parameters: Parameters, lr: float, config: RunConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, lr, momentum=config.momentum or 0.0, weight_decay=config.weight_decay
    )


def _adam(parameters: Parameters, lr: float, config: RunConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr, weight_decay=config.weight_decay)


def _adamw(parameters: Parameters, lr: float, config: RunConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr, weight_decay=config.weight_decay)


OPTIMIZERS: dict[str, Callable[[Parameters, float, RunConfig], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


@dataclass(frozen=True)
class Tuned:
    """Sums over every step that was taken: training loss and the labels it is over."""

    loss: float
    count: int


def learning_rate(config: RunConfig, round_: int) -> float:
    """The clients' learning rate in a round (1 to `rounds`), falling towards 0 after the last."""
    done = (round_ - 1) / config.rounds
    factor = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return config.lr * factor[config.lr_schedule]


def step_batches(part: Part, config: RunConfig, gen: torch.Generator) -> Iterator[Part]:
    """The batches of a round: `local_epochs` shuffled passes, or `local_steps` steps of such."""
    passes = 0
    steps = 0
    while passes < config.local_epochs or steps < config.local_steps:
        order = torch.randperm(examples(part), generator=gen)
        for batch in batches(part, config.batch_size, order):
            if config.local_steps and steps == config.local_steps:
                return
            yield batch
            steps += 1
        passes += 1


def tune(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    steps: Iterator[Part],
    loss: Callable[[nn.Module, Part], Loss],
    lr: float,
    config: RunConfig,
) -> Tuned:
    """Train the model in place on mean losses of batches; its removed weights stay 0.0.

    Args:
        model: holds the weights that were sent, zero where a mask is False.
        masks: True = kept, by parameter name, on the model's device.
        steps: the batches, in order, on the model's device.
        loss: sums over a batch.
        lr: this round's learning rate.
        config: optimizer, momentum, weight decay, clip and proximal term.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    removed = [(p, ~masks[name]) for name, p in model.named_parameters() if name in masks]
    sent = [p.detach().clone() for p in parameters] if config.proximal else []
    optimizer = OPTIMIZERS[config.optimizer](parameters, lr, config)
    sums, counts = 0.0, 0
    model.train()
    for batch in steps:
        optimizer.zero_grad()
        result = loss(model, batch)
        (result.total / max(1, result.count)).backward()
        _shape_gradients(parameters, removed, sent, config)
        optimizer.step()
        sums += result.total.item()
        counts += result.count
    optimizer.zero_grad()
    return Tuned(sums, counts)


def _shape_gradients(
    parameters: Parameters,
    removed: list[tuple[nn.Parameter, Tensor]],
    sent: list[Tensor],
    config: RunConfig,
) -> None:
    for p, start in zip(parameters, sent, strict=False):  # empty unless there is such a term
        if p.grad is not None:
            # FedProx: gradient of (mu/2)|w - w_sent|^2 (Li et al. 2020, arXiv 1812.06127, eq. 2)
            p.grad.add_(p.detach() - start, alpha=config.proximal)
    for p, gone in removed:
        if p.grad is not None:
            p.grad.masked_fill_(gone, 0.0)
    if config.clip:
        nn.utils.clip_grad_norm_(parameters, config.clip)
