"""Masked fine-tuning on one client: a removed weight is exactly 0.0 after every step.

The optimizers are torch's own. A weight stays zero because its gradient is set to zero before
each step and everything the optimizer keeps of it starts at zero: momentum, Adam's moments and
weight decay of a zero weight are then zero too. (Masking the gradient without starting from fresh
state lets Adam move a pruned weight by several learning rates.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fedprune.learning.distillation import Distillation, Taught, taught
from fedprune.learning.manners import Manner
from fedprune.learning.objectives import Term, add_gradients, objective_terms, shrinkages_of
from fedprune.learning.optimizers import Parameters, forget_steps, fresh_optimizer, stepping
from fedprune.structure.attention import eager
from fedprune.tasks.task import Part, Task, examples
from fedprune.tensors.models import found_in, into_training, learning
from fedprune.tensors.named import Tensors, all_true

if TYPE_CHECKING:
    from fedprune.learning.options import Tuning
    from fedprune.scores.score import Watcher


@dataclass(frozen=True)
class Tuned:
    """Sums over every step that was taken.

    Attributes:
        loss: the task's own, before the step.
        count: the labels it is over.
        statistics: those that were watched.
        divergence: of the teacher's answers from the model's; None without a teacher.
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


def prepared(model: nn.Module, config: Tuning) -> nn.Module:
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
    config: Tuning,
    *,
    watch: AbstractContextManager[Watcher] | None = None,
    called: nn.Module | None = None,
    units: Mapping[str, Tensor] | None = None,
    distillation: Distillation | None = None,
    backward: Backward | None = None,
    correction: Mapping[str, Tensor] | None = None,
    manner: Manner = _PLAINLY,
) -> Tuned:
    """Train the model in place on mean losses of steps; its removed weights stay 0.0.

    Args:
        model: holds the weights that were sent, zero where a mask is False.
        masks: True = kept, by parameter name, on the model's device.
        steps: the batches of each step, in order, on the model's device.
        task: sums over a batch, and the labels in it.
        lr: this round's learning rate.
        config: optimizer, momentum, weight decay, clip, further terms, precision.
        watch: collects statistics on the way.
        called: what is called in the model's place, with the same parameters (compiled).
        units: the units of a group lasso, see `fedprune.learning.objectives.unit_norms`.
        distillation: a teacher to learn from beside the labels.
        backward: takes the gradients of a step in another way.
        correction: what is added to every step's gradients, see `fedprune.learning.variates`.
        manner: what is done around every step's gradients, and around the step.
    """
    named = learning(model)
    parameters = list(named.values())
    removed = [
        (p, ~masks[name])
        for name, p in named.items()
        if name in masks and not all_true(masks[name])
    ]
    terms = objective_terms(config, named, tuple(masks), units or {})
    shrinkages = shrinkages_of(config, tuple(masks), units or {})
    step_once = stepping(fresh_optimizer(model, parameters, lr, config))
    device = parameters[0].device.type if parameters else "cpu"
    own = backward or _of_mean_loss(model, called, task, distillation, config, device)
    sums, counts, apart = 0.0, 0, 0.0
    into_training(model)
    with watch or nullcontext() as watcher, _attention_of(model, distillation):
        for step in steps:
            _clear(parameters)
            with manner.gradients():
                done = own(step)
            sums, counts = sums + done.loss, counts + done.labels
            apart += done.divergence
            if watcher is not None and watcher.after_backward is not None:
                watcher.after_backward(sum(task.labels(batch) for batch in step))
            _correct(named, correction or {})
            _shape_gradients(named, removed, terms, config)
            with manner.step():
                step_once()
            for shrink in shrinkages:
                shrink(named, lr)
    _clear(parameters)
    forget_steps(model)
    statistics = None if watcher is None else watcher.sums
    return Tuned(sums, counts, statistics, None if distillation is None else apart)


def _clear(parameters: Parameters) -> None:
    for p in parameters:
        p.grad = None


def _of_mean_loss(
    model: nn.Module,
    called: nn.Module | None,
    task: Task,
    distillation: Distillation | None,
    config: Tuning,
    device: str,
) -> Backward:
    """The gradients of the mean loss over a step's labels."""
    slopes: dict[int, Tensor] = {}

    def backward(step: list[Part]) -> Done:
        labels = max(1, sum(task.labels(batch) for batch in step))
        loss, count, apart = 0.0, 0, 0.0
        for batch in step:
            with precision_of(config, device):
                result = _learnt(model, called, batch, task, distillation)
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


def _learnt(
    model: nn.Module,
    called: nn.Module | None,
    batch: Part,
    task: Task,
    distillation: Distillation | None,
) -> Taught:
    if distillation is not None:
        return taught(distillation, model, batch, called)
    own = task.loss(model if called is None else called, batch)
    return Taught(own, own.total, 0.0)


def _attention_of(
    model: nn.Module, distillation: Distillation | None
) -> AbstractContextManager[None]:
    """Attention that gives its weights, where a lesson looks at them."""
    if distillation is None or not distillation.attention:
        return nullcontext()
    return eager(model, distillation.teacher)


def precision_of(config: Tuning, device: str) -> AbstractContextManager[Any]:
    """Within the block matrix products are in bfloat16, where that was asked for.

    Parameters and the optimizer's state stay float32.
    """
    half = config.precision == "bf16"
    return torch.autocast(device, torch.bfloat16) if half else nullcontext()


def _correct(named: Mapping[str, nn.Parameter], correction: Mapping[str, Tensor]) -> None:
    for name, more in correction.items():
        if name in named:
            p = named[name]
            p.grad = more.clone() if p.grad is None else p.grad.add_(more)


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
