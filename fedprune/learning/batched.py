"""Local training of several clients as one computation: the weights of all in stacks of tensors.

What `fedprune.learning.local_training.tune` does for each client by itself, to rounding: the same
batches, the same optimizer, elementwise on the stack, the same zeros. The client that takes the
most steps is first in the stack, so that those still training are always the first ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedprune.learning.distillation import Distillation, taught
from fedprune.learning.local_training import Tuned, precision_of
from fedprune.learning.objectives import (
    Shrinkage,
    Term,
    add_gradients,
    objective_terms,
    shrinkages_of,
)
from fedprune.learning.optimizers import OPTIMIZERS, stepping
from fedprune.selection.units import unit_count
from fedprune.structure.stacked import Draws, Ragged, Stacked, columnwise, draws_from
from fedprune.tasks.task import Part, Task, examples
from fedprune.tasks.together import Joined, answered_at_once, join_batches, losses_of, replays
from fedprune.tensors.models import CONSTANTS, found_in, into_training, learning
from fedprune.tensors.named import Tensors, all_true

if TYPE_CHECKING:
    from fedprune.learning.options import Tuning

StepRows = list[list[Tensor]]
"""The steps of a client, each a list of batches, which are places of rows."""


@dataclass(frozen=True)
class Trainee:
    """One of the clients that train at once.

    Attributes:
        start: the weights that it begins with, by name, with BatchNorm's statistics.
        masks: True = kept.
        part: what it trains on, on the model's device.
        steps: which rows of that are in each step.
        seed: of its dropout.
    """

    start: Tensors
    masks: Mapping[str, Tensor]
    part: Part
    steps: StepRows
    seed: int


@dataclass(frozen=True)
class Lesson:
    """What all of them are taught.

    Attributes:
        task: its loss, and the labels of a batch.
        lr: this round's learning rate.
        config: optimizer, momentum, weight decay, clip, further terms, precision.
        units: the units of a group lasso.
        distillation: a teacher to learn from beside the labels.
    """

    task: Task
    lr: float
    config: Tuning
    units: Mapping[str, Tensor]
    distillation: Distillation | None = None


@dataclass
class _Class:
    """The clients that still train, as stacks (clients, *shape).

    Attributes:
        named: what is trained, leaves of autograd.
        stored: the same in the order in which they lie in memory, which optimizers want.
        buffers: what the model keeps of batches.
        removed: which weights stay 0.0.
        terms: what is minimised beside the loss.
        shrinkages: what follows a step.
        optimizer: on the stacks.
        take: its step.
        draws: of each client.
    """

    named: dict[str, nn.Parameter]
    stored: dict[str, nn.Parameter]
    buffers: Tensors
    removed: Mapping[str, Tensor]
    terms: tuple[Term, ...]
    shrinkages: tuple[Shrinkage, ...]
    optimizer: torch.optim.Optimizer
    take: Callable[[], None]
    draws: Draws


def tune_together(
    model: nn.Module, trainees: Sequence[Trainee], lesson: Lesson
) -> list[tuple[Tuned, Tensors]]:
    """Train clients on mean losses of their steps, all at once; the model stays as it is.

    Returns:
        For each client sums over its steps, and its state afterwards, on the CPU.

    Raises:
        RuntimeError: the model does what `torch.func.vmap` cannot follow.
        ValueError: its outputs do not have the rows of a batch first, or its loss calls parts of
            it by themselves.
    """
    order = sorted(range(len(trainees)), key=lambda i: -len(trainees[i].steps))
    ranked = [trainees[i] for i in order]
    into_training(model)
    group, done = _begun(model, ranked, lesson), dict[int, Tensors]()
    sums = torch.zeros(3, len(ranked), dtype=torch.float64)
    data, plans = _data_of(ranked)
    alike, left = False, len(ranked)
    for at in range(len(plans[0])):
        there = sum(len(plan) > at for plan in plans)
        if there < left:
            done |= _finished(group, there, left)
            group, left = _narrowed(group, ranked[:there], lesson), there
        steps = [plan[at] for plan in plans[:there]]
        alike = _step(model, group, data, steps, lesson, sums[:, :there], alike)
    done |= _finished(group, 0, left)
    found = {i: (_sums(sums[:, rank], lesson), done[rank]) for rank, i in enumerate(order)}
    return [found[i] for i in range(len(trainees))]


def _data_of(ranked: Sequence[Trainee]) -> tuple[Part, list[StepRows]]:
    """The examples of all, and the steps as places in them."""
    data = {n: torch.cat([t.part[n] for t in ranked]) for n in ranked[0].part}
    begins = itertools.accumulate((examples(t.part) for t in ranked), initial=0)
    plans = [
        [[rows + begin for rows in step] for step in t.steps]
        for t, begin in zip(ranked, begins, strict=False)
    ]
    return data, plans


def _sums(sums: Tensor, lesson: Lesson) -> Tuned:
    loss, count, apart = sums.tolist()
    return Tuned(loss, int(count), None, None if lesson.distillation is None else apart)


def _begun(model: nn.Module, ranked: Sequence[Trainee], lesson: Lesson) -> _Class:
    device, found = next(model.parameters()).device, found_in(model)
    still: frozenset[str] = getattr(model, CONSTANTS, frozenset())
    kept = {n: b for n, b in found.buffers.items() if n in found.saved and n not in still}
    turned = columnwise(model)
    stacks = {
        n: _stack([t.start[n].t() for t in ranked], device).mT
        if n in turned
        else _stack([t.start[n] for t in ranked], device)
        for n in learning(model)
    }
    buffers = {n: _stack([t.start.get(n, b) for t in ranked], device) for n, b in kept.items()}
    named = {n: nn.Parameter(stack) for n, stack in stacks.items()}
    draws = draws_from([t.seed for t in ranked], device)
    return _class_of(named, buffers, draws, ranked, lesson)


def _stack(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.stack([t.detach() for t in tensors]).to(device)


def _class_of(
    named: dict[str, nn.Parameter],
    buffers: Tensors,
    draws: Draws,
    ranked: Sequence[Trainee],
    lesson: Lesson,
) -> _Class:
    c, masks = lesson.config, ranked[0].masks
    removed = {
        n: ~_stack([t.masks[n] for t in ranked], p.device)
        for n, p in named.items()
        if n in masks and not all(all_true(t.masks[n]) for t in ranked)
    }
    count = unit_count(lesson.units)
    units = {
        n: torch.stack([torch.where(u < 0, u, u + i * count) for i in range(len(ranked))])
        for n, u in lesson.units.items()
    }
    near = named if c.proximal else {}
    start = {n: _stack([t.start[n] for t in ranked], p.device) for n, p in near.items()}
    stored = {n: p if p.is_contiguous() else nn.Parameter(p.detach().mT) for n, p in named.items()}
    optimizer = OPTIMIZERS[c.optimizer](list(stored.values()), lesson.lr, c)
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)  # one pass over what is large now
    return _Class(
        *(named, stored, buffers, removed, objective_terms(c, start, tuple(masks), units)),
        *(shrinkages_of(c, tuple(masks), units), optimizer, stepping(optimizer), draws),
    )


def _finished(group: _Class, there: int, left: int) -> dict[int, Tensors]:
    """The states of the clients that have taken their last step, by rank."""
    # Counters of batches are no state.
    floats = {n: b for n, b in group.buffers.items() if b.is_floating_point()}
    whole = {**group.named, **floats}
    return {
        rank: {n: t[rank].detach().to("cpu", copy=True) for n, t in whole.items()}
        for rank in range(there, left)
    }


def _narrowed(group: _Class, ranked: Sequence[Trainee], lesson: Lesson) -> _Class:
    """The first of the clients, as far as they are."""
    n = len(ranked)
    named = {name: nn.Parameter(p.detach()[:n].clone()) for name, p in group.named.items()}
    buffers = {name: b[:n].clone() for name, b in group.buffers.items()}
    draws = Draws(group.draws.states[:n], group.draws.device)
    fresh = _class_of(named, buffers, draws, ranked, lesson)
    for name, p in fresh.stored.items():
        old = group.stored[name]
        state = group.optimizer.state.get(old, {})
        fresh.optimizer.state[p] = {
            key: v[:n].clone() if isinstance(v, Tensor) and v.shape == old.shape else v
            for key, v in state.items()
        }
    return fresh


def _step(
    model: nn.Module,
    group: _Class,
    data: Part,
    steps: Sequence[list[Tensor]],
    lesson: Lesson,
    sums: Tensor,
    alike: bool,
) -> bool:
    """Take a step, add to the sums, and say whether batches have to be of one length."""
    for p in group.named.values():
        p.grad = None
    turns = [_turn(steps, j) for j in range(max(map(len, steps)))]
    batches = [join_batches(data, list(turn.values())) for turn in turns]
    labels = [0] * len(steps)
    for turn, batch in zip(turns, batches, strict=True):
        for i, part in zip(turn, batch.parts(), strict=True):
            labels[i] += lesson.task.labels(part)
    sums[1] += torch.tensor(labels, dtype=sums.dtype)
    for turn, batch in zip(turns, batches, strict=True):
        if not (alike and batch.ragged):
            try:
                _backward(model, group, list(turn), batch, labels, lesson, sums)
                continue
            except Ragged:
                alike = True
        for size in sorted(set(batch.sizes)):
            some = {i: rows for i, rows in turn.items() if len(rows) == size}
            even = join_batches(data, list(some.values()))
            _backward(model, group, list(some), even, labels, lesson, sums)
    _move(group, lesson)
    return alike


def _move(group: _Class, lesson: Lesson) -> None:
    """What follows once the gradients are there."""
    _shape_gradients(group, lesson.config)
    for name, p in group.stored.items():
        gradient = group.named[name].grad
        if p is not group.named[name]:
            p.grad = None if gradient is None else gradient.mT
    group.take()
    for shrink in group.shrinkages:
        shrink(group.named, lesson.lr)


def _turn(steps: Sequence[list[Tensor]], j: int) -> dict[int, Tensor]:
    """The j-th batches of the clients that have so many in a step."""
    return {i: step[j] for i, step in enumerate(steps) if len(step) > j}


def _backward(
    model: nn.Module,
    group: _Class,
    those: list[int],
    batches: Joined,
    labels: Sequence[int],
    lesson: Lesson,
    sums: Tensor,
) -> None:
    """Add the gradients of some clients' batches, each over the labels of its step."""
    stack = _stacked(model, group, those)
    with precision_of(lesson.config, group.draws.device.type):
        total, own, apart = _learnt(stack, batches, lesson)
    by = torch.tensor([max(1, labels[i]) for i in those])
    (total / by.to(total)).sum().backward()
    assert stack.draws is not None
    for place, i in enumerate(those):
        group.draws.states[i] = stack.draws.states[place]
    for name, buffer in group.buffers.items():
        if stack.state[name] is not buffer:
            buffer[those] = stack.state[name]
    sums[0, those] += own.detach().double().cpu()
    sums[2, those] += apart


def _stacked(model: nn.Module, group: _Class, those: list[int]) -> Stacked:
    whole: dict[str, Tensor] = {**group.named, **group.buffers}
    if len(those) < len(group.draws.states):
        where = torch.tensor(those, device=group.draws.device)
        whole = {name: t.index_select(0, where) for name, t in whole.items()}
    draws = Draws([group.draws.states[i] for i in those], group.draws.device)
    return Stacked(model, whole, draws=draws)


def _learnt(stack: Stacked, batches: Joined, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
    """What each client minimises, its task's loss, and its distance from a teacher, (clients,)."""
    if lesson.distillation is None:
        own = losses_of(stack, lesson.task.loss, batches)
        return own, own, torch.zeros(len(own), dtype=torch.float64)
    answered_at_once(stack, lesson.task.loss, batches)
    # What stands for a client's model gives again what was computed above for all.
    found = [taught(lesson.distillation, again, part) for again, part in replays(stack, batches)]
    apart = torch.tensor([each.divergence for each in found], dtype=torch.float64)
    totals = torch.stack([each.total for each in found])
    return totals, torch.stack([each.own.total for each in found]), apart


def _shape_gradients(group: _Class, config: Tuning) -> None:
    if group.terms:
        add_gradients(group.terms, group.named)
    reached = {n: p.grad for n, p in group.named.items() if p.grad is not None}
    for name, gradient in reached.items():
        if name in group.removed:
            gradient.masked_fill_(group.removed[name], 0.0)
    if config.clip:
        _clip(list(reached.values()), config.clip)


def _clip(gradients: Sequence[Tensor], most: float) -> None:
    """What `torch.nn.utils.clip_grad_norm_` does, for every client by itself."""
    norms = [torch.linalg.vector_norm(g, dim=tuple(range(1, g.dim()))) for g in gradients]
    factor = (most / (torch.stack(norms).norm(dim=0) + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.dim() - 1)))
