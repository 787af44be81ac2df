"""Torch's own optimizers, made once a model and without what torch wraps around them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedprune.learning.options import Tuning

Parameters = list[nn.Parameter]


@functools.cache
def _bare(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """A kind of optimizer that is built without torch's compiler: to load that takes a second."""
    group = inspect.unwrap(kind.add_param_group)
    return type(kind.__name__, (kind,), {"add_param_group": group, "__module__": kind.__module__})


def _sgd(parameters: Parameters, lr: float, config: Tuning) -> torch.optim.Optimizer:
    """torch.optim.SGD, with --momentum and --weight-decay."""
    make, momentum = _bare(torch.optim.SGD), config.momentum or 0.0
    return make(parameters, lr, momentum=momentum, weight_decay=config.weight_decay)


def _adam(parameters: Parameters, lr: float, config: Tuning) -> torch.optim.Optimizer:
    """torch.optim.Adam, with --weight-decay."""
    return _bare(torch.optim.Adam)(parameters, lr, weight_decay=config.weight_decay)


def _adamw(parameters: Parameters, lr: float, config: Tuning) -> torch.optim.Optimizer:
    """torch.optim.AdamW, with --weight-decay, which acts on the weights and not on gradients."""
    return _bare(torch.optim.AdamW)(parameters, lr, weight_decay=config.weight_decay)


OPTIMIZERS: dict[str, Callable[[Parameters, float, Tuning], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}

_USED: WeakKeyDictionary[nn.Module, tuple[Any, torch.optim.Optimizer]] = WeakKeyDictionary()


def fresh_optimizer(
    model: nn.Module, parameters: Parameters, lr: float, config: Tuning
) -> torch.optim.Optimizer:
    """An optimizer that remembers nothing: the model's last one, if it is of the same kind.

    To make one takes as long as two steps of a small model.
    """
    make = OPTIMIZERS[config.optimizer]
    kind = (make, config.momentum, config.weight_decay, *map(id, parameters))
    used = _USED.get(model)
    if used is None or used[0] != kind:
        _USED[model] = used = kind, make(parameters, lr, config)
    optimizer = used[1]
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer


def forget_steps(model: nn.Module) -> None:
    """Let go of what the model's last optimizer remembers: Adam's takes twice the weights."""
    _USED[model][1].state.clear()


def stepping(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """What takes the optimizer's step as torch wrote it, without torch's wrappers around it.

    These serve profilers and hooks, of which there are none here, and take longer than the step of
    a small model; so does what SGD asks of every parameter before it moves it.
    """
    group = optimizer.param_groups[0]
    # With weight decay that would hold the decayed gradients of all of them at once.
    alike = not (group["fused"] or group["weight_decay"])
    if alike and type(optimizer) is _bare(torch.optim.SGD):
        return _descent(optimizer)
    bare = inspect.unwrap(type(optimizer).step)

    def step() -> None:
        with torch.no_grad():
            bare(optimizer)

    return step


def _descent(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """What takes a step of SGD to the bit, of all parameters in a call for each operation.

    Of the options of `_sgd` momentum alone.
    """
    (group,) = optimizer.param_groups
    # Without their history: autograd need not be told of each step that it is no part of it.
    bare = [(p, p.detach()) for p in group["params"]]

    def step() -> None:
        moved = [t for p, t in bare if p.grad is not None]
        along = [p.grad for p, _ in bare if p.grad is not None]
        if not moved:
            return
        if group["momentum"]:
            those = [p for p, _ in bare if p.grad is not None]
            along = _with_momentum(optimizer, those, along)
        torch._foreach_add_(moved, along, alpha=-group["lr"])

    return step


def _with_momentum(
    optimizer: torch.optim.Optimizer, moved: Parameters, along: list[Tensor]
) -> list[Tensor]:
    """What the parameters are moved along, once they have gone along other gradients before."""
    state, name = optimizer.state, "momentum_buffer"
    before = [(state[p][name], g) for p, g in zip(moved, along, strict=True) if p in state]
    if before:
        buffers, gradients = map(list, zip(*before, strict=True))
        torch._foreach_mul_(buffers, optimizer.param_groups[0]["momentum"])
        torch._foreach_add_(buffers, gradients)
    if len(before) < len(moved):
        for p, g in zip(moved, along, strict=True):
            if p not in state:
                state[p][name] = g.detach().clone()
    return [state[p][name] for p in moved]
