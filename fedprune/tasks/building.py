"""A task's model, as a run can use it: every layer registered, every shape known."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy

from fedprune.randomness import generator, seeded
from fedprune.streaming.blocks import is_streamed
from fedprune.structure.experts import with_experts
from fedprune.tasks.options import Data, is_trained
from fedprune.tasks.task import Part, Task
from fedprune.tensors.models import CONSTANTS
from fedprune.tensors.named import as_bytes

FP16_MOST = 65504.0
"""The largest number that every value type of the wire can hold."""


def built(task: Task, config: Data) -> nn.Module:
    """The task's dense model, under whatever state torch's global generator has.

    Of a model inside `nn.DataParallel` or `torch.compile` it is the model itself; experts are
    modules (`fedprune.structure.experts`). Lazy layers get
    their shapes from the task's example. Float buffers that training leaves alone (masks, tables of
    positions) are marked as constants, see `fedprune.tensors.models.state_of`.

    Raises:
        ValueError: the task's function fails or gives back no module, a layer is in a plain list,
            a lazy layer has no shape, a parameter is of a type that does not average, or a
            BatchNorm has no running statistics.
    """
    model = with_experts(_bare(_made(task, config)))
    dummy = None if task.dummy is None else task.dummy(config)
    _check_registered(model)
    _materialise(model, task, dummy)
    if is_streamed(model):  # its tensors are those of its files
        saved = model.state_dict().keys()
        still = (n for n, b in model.named_buffers() if n in saved and b.is_floating_point())
        setattr(model, CONSTANTS, frozenset(still))
        return model
    _check_types(model, trained=is_trained(config))
    _check_batch_statistics(model)
    names = _constants(model, task, dummy)
    if names:
        setattr(model, CONSTANTS, names)
    return model


def _made(task: Task, config: Data) -> nn.Module:
    try:
        model = task.model(config)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # the user's own code, of whatever kind
        raise ValueError(
            f"task={config.task!r}: its model function fails: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}; allowed: one that gives back an nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"task={config.task!r}: its model function gives back a {type(model).__name__}; "
            "allowed: an nn.Module"
        )
    return model


def _bare(model: nn.Module) -> nn.Module:
    """The model inside of wrappers that only change how it is computed."""
    compiled = getattr(model, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return _bare(compiled)
    return _bare(model.module) if isinstance(model, nn.DataParallel) else model


def _check_registered(model: nn.Module) -> None:
    """Refuse layers that a plain list or dictionary hides: they would be neither saved nor sent."""
    known = {id(m) for m in model.modules()} | {id(p) for p in model.parameters()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in {"_modules", "_parameters", "_buffers"}:
                continue
            for found in _held(value):
                own = [found, *found.parameters()] if isinstance(found, nn.Module) else [found]
                if id(found) not in known and any(isinstance(p, nn.Parameter) for p in own):
                    raise ValueError(
                        f"model: {f'{path}.' if path else ''}{name} holds a "
                        f"{type(found).__name__} in a {type(value).__name__}, which no part of "
                        "the model is: it would not train; allowed: nn.ModuleList, "
                        "nn.ModuleDict, nn.ParameterList"
                    )


def _held(value: object) -> Iterator[nn.Module | nn.Parameter]:
    """The modules and parameters in a list, tuple or dictionary, at any depth."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return
    for each in value:
        if isinstance(each, nn.Module | nn.Parameter):
            yield each
        else:
            yield from _held(each)


def _materialise(model: nn.Module, task: Task, dummy: Part | None) -> None:
    """Give lazy layers their shapes, by one forward pass of the task's example in eval mode."""
    lazy = _lazy(model)
    if lazy and dummy is not None:
        mode = model.training
        try:
            with torch.no_grad():
                task.loss(model.eval(), dummy)
        except Exception as error:  # of the user's own loss
            why = f"the task's example fails: {type(error).__name__}: {error}"
            raise ValueError(f"model: {lazy[0]} is lazy and {why[:200]}; {_FIX}") from None
        model.train(mode)
        lazy = _lazy(model)
    if lazy:
        why = "no example reaches it" if dummy is not None else "the task has no example (dummy)"
        raise ValueError(f"model: {lazy[0]} is lazy and has no shape: {why}; {_FIX}")


_FIX = "allowed: Task.dummy, an example that runs it, or layers with their sizes"


def _lazy(model: nn.Module) -> list[str]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [name for name, t in tensors if is_lazy(t)]


def _check_types(model: nn.Module, *, trained: bool) -> None:
    """Refuse parameters that train and whose average in float32 would be another model's."""
    for name, p in model.named_parameters():
        if p.is_meta:
            raise ValueError(
                f"model: {name} is on the device meta and has no values; allowed: a model with "
                "weights (model.to_empty(device='cpu') and what fills them)"
            )
        if trained and p.requires_grad and p.dtype != torch.float32:
            raise ValueError(
                f"model: {name} is {str(p.dtype).removeprefix('torch.')}, and weights are averaged "
                "in float32; allowed: model.float(), frozen (requires_grad=False), or "
                "--local-steps 0"
            )
        if p.isnan().any():
            raise ValueError(f"model: {name} holds NaN; allowed: weights that are numbers")
        if p.is_complex() or as_bytes(p) != as_bytes(p.detach().float().to(p.dtype)):
            raise ValueError(
                f"model: {name} is {str(p.dtype).removeprefix('torch.')} and holds numbers that "
                "float32 does not, in which files keep them; allowed: float32, or a buffer"
            )


def _check_batch_statistics(model: nn.Module) -> None:
    """Refuse a BatchNorm that takes its statistics from the batch also when it is measured.

    What it says of an example depends on the others of the batch: scores, losses and gradients of
    examples would depend on how a shard is cut into batches.
    """
    for name, m in model.named_modules():
        if isinstance(m, _BatchNorm) and m.running_mean is None:
            raise ValueError(
                f"model: {name or 'it'} is a {type(m).__name__} without running statistics, which "
                "normalises by whatever batch it is measured in; allowed: "
                "track_running_stats=True, or GroupNorm, LayerNorm, InstanceNorm"
            )


def _constants(model: nn.Module, task: Task, dummy: Part | None) -> frozenset[str]:
    """The names of saved float buffers that training does not move.

    Tried out on a copy, on random examples of the task's shape; where there are none, those that
    no average could hold: infinite, NaN, or out of the range of 16 bits.
    """
    saved = model.state_dict().keys()
    moving = {
        id(b) for m in model.modules() if isinstance(m, _NormBase) for b in m._buffers.values()
    }
    doubtful = {
        name: b
        for name, b in model.named_buffers()
        if name in saved and b.is_floating_point() and id(b) not in moving
    }
    if not doubtful:
        return frozenset()
    after = None if dummy is None else _after_training(model, task, dummy)
    if after is None:
        return frozenset(name for name, b in doubtful.items() if _beyond(b))
    still = {n for n, b in doubtful.items() if n in after and as_bytes(b) == as_bytes(after[n])}
    for name in doubtful.keys() - still:
        if _beyond(after.get(name, doubtful[name])):
            raise ValueError(
                f"model: the buffer {name} changes in training and holds numbers that do not "
                "average (infinite, NaN or above 65504); allowed: a buffer that stays, or "
                "persistent=False"
            )
    return frozenset(still)


def _beyond(buffer: Tensor) -> bool:
    # Of a NaN no comparison is true.
    return not bool((buffer.detach().float().abs() <= FP16_MOST).all())


def _after_training(model: nn.Module, task: Task, dummy: Part) -> dict[str, Tensor] | None:
    """A copy's buffers after one forward pass in train mode; None where that is not possible."""
    try:
        copied: Any = copy.deepcopy(model).train()
        with seeded(0, "constants"), torch.no_grad():
            task.loss(copied, _drawn(dummy))
    except Exception:  # the user's own code; what it cannot do, the run says
        return None
    return dict(copied.named_buffers())


def _drawn(dummy: Part) -> Part:
    """Two examples like this one, with random numbers; integers stay."""
    gen = generator(0, "constants")
    pairs = {name: torch.cat([t[:1], t[:1]]) for name, t in dummy.items()}
    return {
        name: torch.randn(t.shape, generator=gen).to(t.dtype) if t.is_floating_point() else t
        for name, t in pairs.items()
    }
