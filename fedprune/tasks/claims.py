"""A model that a file speaks of is not built larger than the file can fill.

Depth, width and vocabulary are words in a head or a ``config.json``; a few bytes of them can ask
for more memory than there is. So while such a model is built, what its layers allocate is counted
before it is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FREE = 2**24
"""Values that a model may hold whatever its file: positions, causal masks, fresh heads."""

TIMES = 8
"""So many values may be allocated for each that the file holds: buffers, draws, copies."""

CALLS = 200_000
"""Allocations of any size, so that a billion empty layers end too."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
"""Files of a folder that hold values."""

_LIKE = (torch.empty_like, torch.zeros_like, torch.ones_like, torch.rand_like, torch.randn_like)
_SIZED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.randint)


class _Counting(TorchFunctionMode):
    """Counts what is allocated by size, and refuses what goes beyond."""

    def __init__(self, most: int, name: str) -> None:
        super().__init__()
        self.most, self.name, self.values, self.calls = most, name, 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.values += _asked_for(func, args, kwargs)
        self.calls += func in _SIZED
        if self.values > self.most or self.calls > CALLS:
            raise ValueError(
                f"{self.name}: claims a model of more than {self.most} values, which its file "
                "cannot fill; allowed: a model and the weights that belong to it"
            )
        return func(*args, **kwargs)


def _asked_for(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many values a call allocates by the sizes that it names; 0 for any other call."""
    if func in _LIKE:
        return int(args[0].numel())
    if func is torch.arange:
        return int(max(_whole([*args, kwargs.get("end", 0)]), default=0))
    if func is torch.full:
        return math.prod(_whole([args[0] if args else kwargs.get("size", ())]))
    if func is torch.eye:
        return math.prod(_whole((list(args[:2]) * 2)[:2]))
    if func in _SIZED:
        named = kwargs.get("size", args)
        sizes = named[-1:] if func is torch.randint else named
        return math.prod(_whole(sizes if isinstance(sizes, list | tuple) else [sizes]))
    return 0


def _whole(sizes: Iterable[Any]) -> list[int]:
    """The whole numbers in sizes, however they are nested."""
    out: list[int] = []
    for size in sizes:
        out += _whole(size) if isinstance(size, list | tuple) else [size] * isinstance(size, int)
    return out


@contextmanager
def filled_by(values: int, name: str) -> Iterator[None]:
    """Within the block no model is built that a file of so many values could not fill.

    Raises:
        ValueError: one begins to be; nothing of the layer that would be too large is allocated.
    """
    with _Counting(FREE + TIMES * values, name):
        yield


def values_in(folder: Path) -> int:
    """How many values the weights in a folder can be at most: one a byte."""
    files = (p for p in folder.iterdir() if p.suffix in WEIGHTS)
    return sum(p.stat().st_size for p in files if p.is_file())
