"""Masked fine-tuning on one client: a removed weight is exactly 0.0 after every step.

The optimizers are torch's own. A weight stays zero because its gradient is set to zero before
each step and everything the optimizer keeps of it starts at zero: momentum, Adam's moments and
weight decay of a zero weight are then zero too. (Masking the gradient without starting from fresh
state lets Adam move a pruned weight by several learning rates.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fedprune.tasks.task import Part, Task, batches, examples
from fedprune.tensors import Tensors

if TYPE_CHECKING:
    from fedprune.config import RunConfig
    from fedprune.pruning.score import Watcher

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
    """Sums over every step that was taken: training loss, the labels it is over, statistics."""

    loss: float
    count: int
    statistics: Tensors | None = None


def learning_rate(config: RunConfig, round_: int) -> float:
    """The clients' learning rate in a round (1 to `rounds`), falling towards 0 after the last."""
    done = (round_ - 1) / config.rounds
    factor = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return config.lr * factor[config.lr_schedule]


def step_batches(part: Part, config: RunConfig, gen: torch.Generator) -> Iterator[list[Part]]:
    """The steps of a round, each a list of at most `accumulate` batches.

    `local_epochs` shuffled passes, or `local_steps` steps of such.
    """
    passes = 0
    steps = 0
    while passes < config.local_epochs or steps < config.local_steps:
        order = torch.randperm(examples(part), generator=gen)
        one_pass = list(batches(part, config.batch_size, order))
        for start in range(0, len(one_pass), config.accumulate):
            if config.local_steps and steps == config.local_steps:
                return
            yield one_pass[start : start + config.accumulate]
            steps += 1
        passes += 1


def prepared(model: nn.Module, config: RunConfig) -> nn.Module:
    """What is called while tuning: the model, or a compiled view of the same parameters.

    Raises:
        ValueError: the model cannot recompute its activations.
    """
    if config.checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise ValueError(
                f"checkpointing=True: {type(model).__name__} keeps its activations; "
                "allowed: false, or a model of transformers"
            )
        _recompute(cast(Any, model))
    return cast(nn.Module, torch.compile(model)) if config.compile else model


def _recompute(model: Any) -> None:
    how = {"use_reentrant": False}
    # The name that transformers 5.23 warns about in favour of the first one.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(how)
    else:
        model.gradient_checkpointing_enable(how)


def tune(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    steps: Iterator[list[Part]],
    task: Task,
    lr: float,
    config: RunConfig,
    *,
    watch: AbstractContextManager[Watcher] | None = None,
    called: nn.Module | None = None,
) -> Tuned:
    """Train the model in place on mean losses of steps; its removed weights stay 0.0.

    Args:
        model: holds the weights that were sent, zero where a mask is False.
        masks: True = kept, by parameter name, on the model's device.
        steps: the batches of each step, in order, on the model's device.
        task: sums over a batch, and the labels in it.
        lr: this round's learning rate.
        config: optimizer, momentum, weight decay, clip, proximal term, precision.
        watch: collects statistics on the way.
        called: what is called in the model's place, with the same parameters (compiled).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    removed = [(p, ~masks[name]) for name, p in model.named_parameters() if name in masks]
    sent = [p.detach().clone() for p in parameters] if config.proximal else []
    optimizer = OPTIMIZERS[config.optimizer](parameters, lr, config)
    sums, counts = 0.0, 0
    model.train()
    with watch or nullcontext() as watcher:
        for step in steps:
            optimizer.zero_grad()
            labels = sum(task.labels(batch) for batch in step)
            for batch in step:
                with _precision(config, parameters[0].device.type):
                    result = task.loss(model if called is None else called, batch)
                (result.total / max(1, labels)).backward()
                sums += result.total.item()
                counts += result.count
            if watcher is not None:
                watcher.after_backward(labels)
            _shape_gradients(parameters, removed, sent, config)
            optimizer.step()
    optimizer.zero_grad()
    return Tuned(sums, counts, None if watcher is None else watcher.sums)


def _precision(config: RunConfig, device: str) -> AbstractContextManager[Any]:
    # Parameters and optimizer state stay float32; matrix products are taken in bfloat16.
    half = config.precision == "bf16"
    return torch.autocast(device, torch.bfloat16) if half else nullcontext()


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
