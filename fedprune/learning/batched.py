"""Local training of several clients as one computation: the weights of all in stacks of tensors.

What `fedprune.learning.local_training.tune` does for each client by itself, to rounding: the same
batches, the same optimizer, elementwise on the stack, the same zeros. The client that takes the
most steps is first in the stack, so that those still training are always the first ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedprune.learning.distillation import taught
from fedprune.learning.local_training import Tuned, precision_of
from fedprune.learning.objectives import add_gradients
from fedprune.learning.stacks import (
    CommonTraining,
    Stacks,
    StepRows,
    Trainee,
    end_states,
    first_stacks,
    stacks_at_start,
)
from fedprune.structure.folding import Draws, Ragged
from fedprune.structure.stacked import Stacked
from fedprune.tasks.task import Part, examples
from fedprune.tasks.together import Joined, answered_at_once, join_batches, losses_of, replays
from fedprune.tensors.models import into_training
from fedprune.tensors.named import Tensors


def tune_together(
    model: nn.Module, trainees: Sequence[Trainee], common: CommonTraining
) -> list[tuple[Tuned, Tensors]]:
    """Train clients on mean losses of their steps, all at once; the model stays as it is.

    For each client sums over its steps and its state afterwards come out, on the CPU.

    Raises:
        RuntimeError: the model does what `torch.func.vmap` cannot follow.
        ValueError: its outputs do not have the rows of a batch first, or its loss calls parts of
            it by themselves.
    """
    order = sorted(range(len(trainees)), key=lambda i: -len(trainees[i].steps))
    ranked = [trainees[i] for i in order]
    into_training(model)
    stacks, done = stacks_at_start(model, ranked, common), dict[int, Tensors]()
    sums = torch.zeros(3, len(ranked), dtype=torch.float64)
    data, plans = _data_of(ranked)
    alike, left = False, len(ranked)
    for at in range(len(plans[0])):
        there = sum(len(plan) > at for plan in plans)
        if there < left:
            done |= end_states(stacks, there, left)
            stacks, left = first_stacks(stacks, ranked[:there], common), there
        steps = [plan[at] for plan in plans[:there]]
        alike = _step(model, stacks, data, steps, common, sums[:, :there], alike)
    done |= end_states(stacks, 0, left)
    found: dict[int, tuple[Tuned, Tensors]] = {}
    for rank, i in enumerate(order):
        loss, count, apart = sums[:, rank].tolist()
        taught_by = None if common.distillation is None else apart
        found[i] = Tuned(loss, int(count), None, taught_by), done[rank]
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


def _step(
    model: nn.Module,
    stacks: Stacks,
    data: Part,
    steps: Sequence[list[Tensor]],
    common: CommonTraining,
    sums: Tensor,
    alike: bool,
) -> bool:
    """Take a step, add to the sums, and say whether batches have to be of one length."""
    for p in stacks.named.values():
        p.grad = None
    # The j-th batches of the clients that have so many in a step.
    most = range(max(map(len, steps)))
    turns = [{i: step[j] for i, step in enumerate(steps) if len(step) > j} for j in most]
    batches = [join_batches(data, list(turn.values())) for turn in turns]
    labels = [0] * len(steps)
    for turn, batch in zip(turns, batches, strict=True):
        for i, part in zip(turn, batch.parts(), strict=True):
            labels[i] += common.task.labels(part)
    sums[1] += torch.tensor(labels, dtype=sums.dtype)
    for turn, batch in zip(turns, batches, strict=True):
        if not (alike and batch.ragged):
            try:
                _backward(model, stacks, list(turn), batch, labels, common, sums)
                continue
            except Ragged:
                alike = True
        for size in sorted(set(batch.sizes)):
            some = {i: rows for i, rows in turn.items() if len(rows) == size}
            even = join_batches(data, list(some.values()))
            _backward(model, stacks, list(some), even, labels, common, sums)
    _move(stacks, common)
    return alike


def _move(stacks: Stacks, common: CommonTraining) -> None:
    """What follows once the gradients are there."""
    if stacks.terms:
        add_gradients(stacks.terms, stacks.named)
    reached = {n: p.grad for n, p in stacks.named.items() if p.grad is not None}
    for name in stacks.removed.keys() & reached.keys():
        reached[name].masked_fill_(stacks.removed[name], 0.0)
    if common.config.clip:
        _clip(list(reached.values()), common.config.clip)
    for name, p in stacks.stored.items():
        gradient = stacks.named[name].grad
        if p is not stacks.named[name]:
            p.grad = None if gradient is None else gradient.mT
    stacks.take()
    for shrink in stacks.shrinkages:
        shrink(stacks.named, common.lr)


def _backward(
    model: nn.Module,
    stacks: Stacks,
    those: list[int],
    batches: Joined,
    labels: Sequence[int],
    common: CommonTraining,
    sums: Tensor,
) -> None:
    """Add the gradients of some clients' batches, each over the labels of its step."""
    stack = _stacked(model, stacks, those)
    with precision_of(common.config, stacks.draws.device.type):
        total, own, apart = _learnt(stack, batches, common)
    by = torch.tensor([max(1, labels[i]) for i in those])
    (total / by.to(total)).sum().backward()
    assert stack.draws is not None
    for place, i in enumerate(those):
        stacks.draws.states[i] = stack.draws.states[place]
    for name, buffer in stacks.buffers.items():
        if stack.state[name] is not buffer:
            buffer[those] = stack.state[name]
    sums[0, those] += own.detach().double().cpu()
    sums[2, those] += apart


def _stacked(model: nn.Module, stacks: Stacks, those: list[int]) -> Stacked:
    whole: dict[str, Tensor] = {**stacks.named, **stacks.buffers}
    if len(those) < len(stacks.draws.states):
        where = torch.tensor(those, device=stacks.draws.device)
        whole = {name: t.index_select(0, where) for name, t in whole.items()}
    draws = Draws([stacks.draws.states[i] for i in those], stacks.draws.device)
    return Stacked(model, whole, draws=draws)


def _learnt(
    stack: Stacked, batches: Joined, common: CommonTraining
) -> tuple[Tensor, Tensor, Tensor]:
    """What each client minimises, its task's loss, and its distance from a teacher, (clients,)."""
    if common.distillation is None:
        own = losses_of(stack, common.task.loss, batches)
        return own, own, torch.zeros(len(own), dtype=torch.float64)
    answered_at_once(stack, common.task.loss, batches)
    # What stands for a client's model gives again what was computed above for all.
    found = [taught(common.distillation, again, part) for again, part in replays(stack, batches)]
    apart = torch.tensor([each.divergence for each in found], dtype=torch.float64)
    totals = torch.stack([each.total for each in found])
    return totals, torch.stack([each.own.total for each in found]), apart


def _clip(gradients: Sequence[Tensor], most: float) -> None:
    """What `torch.nn.utils.clip_grad_norm_` does, for every client by itself."""
    norms = [torch.linalg.vector_norm(g, dim=tuple(range(1, g.dim()))) for g in gradients]
    factor = (most / (torch.stack(norms).norm(dim=0) + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.dim() - 1)))
