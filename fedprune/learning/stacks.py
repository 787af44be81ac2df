"""The clients that train at once as stacks of tensors: how they begin, become fewer and end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.learning.distillation import Distillation
from fedprune.learning.objectives import Shrinkage, Term, objective_terms, shrinkages_of
from fedprune.learning.optimizers import OPTIMIZERS, stepping
from fedprune.learning.options import Tuning
from fedprune.selection.units import unit_count
from fedprune.structure.folding import Draws, draws_from
from fedprune.structure.stacked import columnwise
from fedprune.tasks.task import Part, Task
from fedprune.tensors.models import CONSTANTS, found_in, learning
from fedprune.tensors.named import Tensors, all_true

StepRows = list[list[Tensor]]
"""The steps of a client, each a list of batches, which are places of rows."""


@dataclass(frozen=True)
class Trainee:
    """One of the clients that train at once.

    `start` has BatchNorm's statistics too; `part` is on the model's device, `steps` are places in
    it.
    """

    start: Tensors
    masks: Mapping[str, Tensor]
    part: Part
    steps: StepRows
    seed: int


@dataclass(frozen=True)
class CommonTraining:
    """What all of them are trained with."""

    task: Task
    lr: float
    config: Tuning
    units: Mapping[str, Tensor]
    distillation: Distillation | None = None


@dataclass
class Stacks:
    """The clients that still train, as stacks (clients, *shape).

    `named` are leaves of autograd, `stored` the same in the order in which they lie in memory,
    which optimizers want; `buffers` is what the model keeps of batches, `removed` which weights
    stay 0.0.
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


def stacks_at_start(model: nn.Module, ranked: Sequence[Trainee], common: CommonTraining) -> Stacks:
    """All clients before their first step, who takes the most steps first."""
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
    return _stacks_of(named, buffers, draws_from([t.seed for t in ranked], device), ranked, common)


def _stack(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.stack([t.detach() for t in tensors]).to(device)


def _stacks_of(
    named: dict[str, nn.Parameter],
    buffers: Tensors,
    draws: Draws,
    ranked: Sequence[Trainee],
    common: CommonTraining,
) -> Stacks:
    c, masks = common.config, ranked[0].masks
    removed = {
        n: ~_stack([t.masks[n] for t in ranked], p.device)
        for n, p in named.items()
        if n in masks and not all(all_true(t.masks[n]) for t in ranked)
    }
    count = unit_count(common.units)
    units = {
        n: torch.stack([torch.where(u < 0, u, u + i * count) for i in range(len(ranked))])
        for n, u in common.units.items()
    }
    near = named if c.proximal else {}
    start = {n: _stack([t.start[n] for t in ranked], p.device) for n, p in near.items()}
    stored = {n: p if p.is_contiguous() else nn.Parameter(p.detach().mT) for n, p in named.items()}
    optimizer = OPTIMIZERS[c.optimizer](list(stored.values()), common.lr, c)
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)  # one pass over what is large now
    return Stacks(
        *(named, stored, buffers, removed, objective_terms(c, start, tuple(masks), units)),
        *(shrinkages_of(c, tuple(masks), units), optimizer, stepping(optimizer), draws),
    )


def end_states(stacks: Stacks, there: int, left: int) -> dict[int, Tensors]:
    """The states of the clients that have taken their last step, by rank."""
    # Counters of batches are no state.
    floats = {n: b for n, b in stacks.buffers.items() if b.is_floating_point()}
    whole = {**stacks.named, **floats}
    return {
        rank: {n: t[rank].detach().to("cpu", copy=True) for n, t in whole.items()}
        for rank in range(there, left)
    }


def first_stacks(stacks: Stacks, ranked: Sequence[Trainee], common: CommonTraining) -> Stacks:
    """The first of the clients, as far as they are."""
    n = len(ranked)
    named = {name: nn.Parameter(p.detach()[:n].clone()) for name, p in stacks.named.items()}
    buffers = {name: b[:n].clone() for name, b in stacks.buffers.items()}
    draws = Draws(stacks.draws.states[:n], stacks.draws.device)
    fresh = _stacks_of(named, buffers, draws, ranked, common)
    for name, p in fresh.stored.items():
        old = stacks.stored[name]
        state = stacks.optimizer.state.get(old, {})
        fresh.optimizer.state[p] = {
            key: v[:n].clone() if isinstance(v, Tensor) and v.shape == old.shape else v
            for key, v in state.items()
        }
    return fresh
