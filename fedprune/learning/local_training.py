"""Masked fine-tuning on one client: a removed weight is exactly 0.0 after every step.

The optimizers are torch's own. A weight stays zero because its gradient is set to zero before
each step and everything the optimizer keeps of it starts at zero: momentum, Adam's moments and
weight decay of a zero weight are then zero too. (Masking the gradient without starting from fresh
state lets Adam move a pruned weight by several learning rates.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fedprune.learning.distillation import Distillation, Taught, taught
from fedprune.learning.manners import Manner
from fedprune.learning.objectives import Term, add_gradients, objective_terms, shrinkages_of
from fedprune.learning.optimizers import forget_steps, fresh_optimizer, stepping
from fedprune.learning.options import Tuning
from fedprune.structure.attention import eager
from fedprune.tasks.task import Part, Task
from fedprune.tensors.models import into_training, learning
from fedprune.tensors.named import Tensors, all_true

if TYPE_CHECKING:
    from fedprune.scores.score import Watcher


@dataclass(frozen=True)
class Tuned:
    """Sums over every step that was taken.

    The loss is the task's own, before each step; there is no divergence without a teacher.
    """

    loss: float
    count: int
    statistics: Tensors | None = None
    divergence: float | None = None


class Done(NamedTuple):
    """One step's sums: the loss, the labels it is over, and the divergence from a teacher."""

    loss: float
    labels: int
    divergence: float = 0.0


Train = Callable[..., Tuned]
"""Trains as `tune` does, with the same arguments: a user's own training."""

_PLAINLY = Manner()

Backward = Callable[[list[Part]], Done]
"""Leaves the gradients of a step's batches in the parameters' `grad`."""


@dataclass(frozen=True)
class Extras:
    """What options ask of training beside the plain way.

    Attributes:
        watch: collects statistics on the way.
        called: what is called in the model's place, with the same parameters (compiled).
        units: the units of a group lasso, see `fedprune.learning.objectives.unit_norms`.
        distillation: a teacher to learn from beside the labels.
        backward: takes the gradients of a step in another way.
        correction: what is added to every step's gradients, see `fedprune.learning.variates`.
        manner: what is done around every step's gradients, and around the step.
    """

    watch: AbstractContextManager[Watcher] | None = None
    called: nn.Module | None = None
    units: Mapping[str, Tensor] = field(default_factory=dict)
    distillation: Distillation | None = None
    backward: Backward | None = None
    correction: Mapping[str, Tensor] = field(default_factory=dict)
    manner: Manner = _PLAINLY


def tune(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    steps: Iterator[list[Part]],
    task: Task,
    lr: float,
    config: Tuning,
    **more: Any,
) -> Tuned:
    """Train the model in place on mean losses of steps; its removed weights stay 0.0.

    Args:
        model: holds the weights that were sent, zero where a mask is False.
        masks: True = kept, by parameter name, on the model's device.
        steps: the batches of each step, in order, on the model's device.
        task: sums over a batch, and the labels in it.
        lr: this round's learning rate.
        config: optimizer, momentum, weight decay, clip, further terms, precision.
        more: the attributes of `Extras`.
    """
    extras, named = Extras(**more), learning(model)
    own = extras.backward or _of_mean_loss(model, task, config, extras)
    move = _moving(model, masks, lr, config, extras)
    sums, counts, apart = 0.0, 0, 0.0
    into_training(model)
    teacher = extras.distillation
    # Attention gives its weights only where it is written out.
    looks = teacher is not None and teacher.attention
    looked_at = eager(model, teacher.teacher) if teacher and looks else nullcontext()
    with extras.watch or nullcontext() as watcher, looked_at:
        for step in steps:
            _clear(named)
            with extras.manner.gradients():
                done = own(step)
            sums, counts = sums + done.loss, counts + done.labels
            apart += done.divergence
            if watcher is not None and watcher.after_backward is not None:
                watcher.after_backward(sum(task.labels(batch) for batch in step))
            move()
    _clear(named)
    forget_steps(model)
    statistics = None if watcher is None else watcher.sums
    return Tuned(sums, counts, statistics, None if extras.distillation is None else apart)


def _moving(
    model: nn.Module, masks: Mapping[str, Tensor], lr: float, config: Tuning, extras: Extras
) -> Callable[[], None]:
    """What moves the weights by their gradients, whose optimizer remembers nothing yet."""
    named = learning(model)
    removed = [
        (p, ~masks[name])
        for name, p in named.items()
        if name in masks and not all_true(masks[name])
    ]
    terms = objective_terms(config, named, tuple(masks), extras.units)
    shrinkages = shrinkages_of(config, tuple(masks), extras.units)
    step_once = stepping(fresh_optimizer(model, list(named.values()), lr, config))

    def move() -> None:
        for name, more in extras.correction.items():
            if name in named:
                p = named[name]
                p.grad = more.clone() if p.grad is None else p.grad.add_(more)
        _shape_gradients(named, removed, terms, config)
        with extras.manner.step():
            step_once()
        for shrink in shrinkages:
            shrink(named, lr)

    return move


def _clear(named: Mapping[str, nn.Parameter]) -> None:
    for p in named.values():
        p.grad = None


def _of_mean_loss(model: nn.Module, task: Task, config: Tuning, extras: Extras) -> Backward:
    """The gradients of the mean loss over a step's labels."""
    device = next((p.device.type for p in learning(model).values()), "cpu")
    slopes: dict[int, Tensor] = {}

    def backward(step: list[Part]) -> Done:
        labels = max(1, sum(task.labels(batch) for batch in step))
        loss, count, apart = 0.0, 0, 0.0
        for batch in step:
            with precision_of(config, device):
                result = _learnt(model, batch, task, extras)
            if labels not in slopes:
                slopes[labels] = torch.ones_like(result.total) / labels
            # The slope of the mean, handed over: to divide would be one more node of the graph.
            _gradients(result.total, slopes[labels])
            loss += result.own.total.item()
            count += result.own.count
            apart += result.divergence
        return Done(loss, count, apart)

    return backward


def _gradients(total: Tensor, slope: Tensor) -> None:
    """As ``total.backward(slope)``, whose checks of what it is given take long beside a batch."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (total,), (slope,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _learnt(model: nn.Module, batch: Part, task: Task, extras: Extras) -> Taught:
    if extras.distillation is not None:
        return taught(extras.distillation, model, batch, extras.called)
    own = task.loss(model if extras.called is None else extras.called, batch)
    return Taught(own, own.total, 0.0)


def precision_of(config: Tuning, device: str) -> AbstractContextManager[Any]:
    """Within the block matrix products are in bfloat16, where that was asked for.

    Parameters and the optimizer's state stay float32.
    """
    half = config.precision == "bf16"
    return torch.autocast(device, torch.bfloat16) if half else nullcontext()


def _shape_gradients(
    named: Mapping[str, nn.Parameter],
    removed: list[tuple[nn.Parameter, Tensor]],
    terms: Sequence[Term],
    config: Tuning,
) -> None:
    if terms:
        add_gradients(terms, named)
    for p, gone in removed:
        if p.grad is not None:
            p.grad.masked_fill_(gone, 0.0)
    if config.clip:
        nn.utils.clip_grad_norm_(named.values(), config.clip)
