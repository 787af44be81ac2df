"""What a model weighs and what a forward pass takes: size, operations, time.

Beside a run's own log this is where the clock is read, because latency is what is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.config import RunConfig
from fedprune.export.quantise import GroupedLinear, IntegerLinear
from fedprune.streaming.blocks import is_streamed
from fedprune.structure.attention import eager
from fedprune.tasks.task import Part, Task
from fedprune.tensors.lazy import bare_of
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Masks, Tensors, count


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        parameters: numbers that its forward pass reads, ties once; of quantised layers the
            numbers that they stand for.
        nonzeros: those that are not 0.0.
        bytes_dense: all of them in fp32.
        bytes_held: what its parameters and buffers take in memory as they are.
    """

    parameters: int
    nonzeros: int
    bytes_dense: int
    bytes_held: int


@dataclass(frozen=True)
class Forward:
    """What one call of a model is given, on the CPU."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def through(self, model: nn.Module) -> Any:
        """What the model says to it, without gradients."""
        with torch.no_grad():
            return model(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float


def size_of(model: nn.Module) -> Size:
    """The size of a model as it stands; zeros are counted, not masks."""
    values = dense_values(model)
    total = count(values)
    nonzeros = sum(int(torch.count_nonzero(t)) for t in values.values())
    if is_streamed(model):
        sizes = [t.numel() * t.element_size() for t in bare_of(values).values()]
        return Size(total, nonzeros, 4 * total, sum(sizes))
    own = {t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    held = sum(t.numel() * t.element_size() for t in own.values())
    return Size(total, nonzeros, 4 * total, held)


def dense_values(model: nn.Module) -> Tensors:
    """The numbers a model computes with, by name, ties once; those of quantised layers restored."""
    if is_streamed(model):
        return state_of(model)
    values: Tensors = {name: p.detach() for name, p in model.named_parameters()}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, GroupedLinear | IntegerLinear) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            values[f"{path}.weight"] = module.dense()
    return values


def zeros_as_masks(model: nn.Module, names: Sequence[str]) -> Masks:
    """Masks that keep what is not 0.0, for a model that nobody kept the masks of."""
    values = dense_values(model)
    return {name: values[name] != 0 for name in names if name in values}


def forward_of(task: Task, model: nn.Module, config: RunConfig, batch: int = 1) -> Forward | None:
    """What the task calls the model with, for `batch` examples without data in them.

    Returns:
        None: the task has no such example, or its loss does not call the model itself.
    """
    if task.dummy is None:
        return None
    part: Part = {
        name: t.repeat(batch, *[1] * (t.dim() - 1)) for name, t in task.dummy(config).items()
    }
    seen: list[Forward] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(Forward(args, kwargs))

    with model.register_forward_pre_hook(keep, with_kwargs=True), torch.no_grad():
        task.loss(model, part)
    return seen[0] if seen else None


def operations(model: nn.Module, forward: Forward) -> int:
    """Floating-point operations of one call: matrix products and convolutions, zeros not skipped.

    Counted under eager attention: PyTorch's counter misses the products inside its fused one.
    Products of 8-bit integers count like those of floats.
    """
    integers = {torch.ops.aten._int_mm: lambda a, b, *_, **__: int(2 * a[0] * a[1] * b[1])}
    count = FlopCounterMode(display=False, custom_mapping=integers)
    with eager(model), _frozen(model), count as counter:
        forward.through(model)
    return int(counter.get_total_flops())


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no parameter asks for a gradient; as it was afterwards.

    PyTorch's counter asks what goes into a module for its gradient function, which a parameter
    (DeBERTa's table of distances goes through a norm) has not without gradients.
    """
    able = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in able:
            p.requires_grad_(False)
        yield
    finally:
        for p in able:
            p.requires_grad_(True)


def timed(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int, threads: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times, the calls taking turns.

    What disturbs the machine for a while disturbs all of them, so their ratio is steadier than
    their times. torch's number of threads is set for the while.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for call in calls.values():
            for _ in range(warmup):
                call()
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return taken


def spread_of(values: Sequence[float]) -> Spread:
    """Median, lower and upper quartile."""
    found = torch.tensor(values, dtype=torch.float64)
    low, median, high = torch.quantile(found, torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    return Spread(median, low, high)


def speedup(before: Sequence[float], after: Sequence[float]) -> Spread:
    """How many times faster `after` is: the spread of the ratios of calls made side by side."""
    return spread_of([b / a for b, a in zip(before, after, strict=True)])
