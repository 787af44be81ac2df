"""A model that a file speaks of is not built larger than the file can fill.

Depth, width and vocabulary are words in a head or a ``config.json``; a few bytes of them can ask
for more memory than there is. So while such a model is built, what its layers allocate is counted
before it is allocated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fedprune.runtime.json_text import MOST_TENSORS, read_object
from fedprune.streaming.files import places_in

FREE_VALUES = 2**24
"""Values that a model may hold whatever its file: positions, causal masks, fresh heads."""

_TIMES = 8
"""So many values may be allocated for each that the file holds: buffers, draws, copies."""

CALLS = 2_000
"""Allocations, of any size, whatever the file holds: layers of nothing cost memory and time too."""

CALLS_EACH = 16
"""Further ones for each tensor of the file."""

_OTHERS = (".bin", ".pt", ".pth")
"""Files of a folder that hold values and do not say how many: at most one a byte."""

LONGEST_CONFIG = 2**22
"""Bytes of a ``config.json``."""

MOST_COUNTED = 2**14
"""The largest number that a config may say of what it makes lists of."""

MOST_LAYERS = 2**10
"""The same of layers: each is an object of many."""

LONGEST_TOKENIZER = 2**26
"""Bytes of a file of a tokenizer, whose words take some fifteen times as much in memory."""

_COUNTED = ("layer", "label", "blocks", "stage", "expert", "depth")
_OF_WORDS = ("label", "expert")
_NOT_COUNTED = ("size", "dim")

_LIKE = (torch.empty_like, torch.zeros_like, torch.ones_like, torch.rand_like, torch.randn_like)
_SIZED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.randint)


class TooLarge(ValueError):
    """A model that cannot be filled, or not be trained."""


class _Counting(TorchFunctionMode):
    """Counts what is allocated by size, and refuses what goes beyond."""

    def __init__(self, most: int, calls: int, name: str, why: str) -> None:
        super().__init__()
        self.most, self.most_calls, self.name, self.why = most, calls, name, why
        self.values, self.calls = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.values += _asked_for(func, args, kwargs)
        self.calls += func in _SIZED
        if self.values > self.most or self.calls > self.most_calls:
            what = f"{self.most} values" if self.values > self.most else f"{self.most_calls} parts"
            raise TooLarge(
                f"{self.name}: claims a model of more than {what}, {self.why}; allowed: "
                "a smaller one, or the weights that belong to it"
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


@dataclass(frozen=True)
class HeldByFiles:
    """How much of a model files hold.

    So many numbers, of any type, in so many tensors.
    """

    values: int
    tensors: int


@contextmanager
def filled_by(held: HeldByFiles, name: str) -> Iterator[None]:
    """Within the block no model is built that files which hold so much could not fill.

    Raises:
        TooLarge: one begins to be; nothing of the layer that would be too large is allocated.
    """
    most, calls = FREE_VALUES + _TIMES * held.values, CALLS + CALLS_EACH * held.tensors
    with _Counting(most, calls, name, "which its files cannot fill"):
        yield


TRAINING = 16
"""Bytes of memory for each value of a model that is trained: itself, its gradient, Adam's two."""

SCORING = 6
"""The same of a model that nobody trains: itself in float32, and what is said of each weight."""


@contextmanager
def within_memory(name: str, *, trained: bool) -> Iterator[None]:
    """Within the block no model is built that this machine has not the memory for.

    Raises:
        TooLarge: as `filled_by`.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    each, use = (TRAINING, "train") if trained else (SCORING, "score")
    most, calls = max(FREE_VALUES, memory // each), CALLS + CALLS_EACH * MOST_TENSORS
    with _Counting(most, calls, name, f"which this machine has not the memory to {use}"):
        yield


def held_in(tensors: Mapping[str, Tensor]) -> HeldByFiles:
    """How much tensors that were read hold."""
    return HeldByFiles(sum(t.numel() for t in tensors.values()), len(tensors))


def held_by(folder: Path) -> HeldByFiles:
    """How much the files of weights in a folder hold at most; only their headers are read.

    Raises:
        ValueError: the header of one is damaged, or too long.
    """
    values = tensors = 0
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            places = places_in(path).values()
            values += sum(place.shape.numel() for place in places)
            tensors += len(places)
        elif path.suffix in _OTHERS:
            values += path.stat().st_size
            tensors += path.stat().st_size // 2**8
    return HeldByFiles(values, tensors)


def check_config(folder: Path) -> None:
    """Refuse a ``config.json`` that asks for lists of a length that no model has, or long files.

    Raises:
        ValueError: it cannot be read, or a number of layers, labels or the like is too large.
    """
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.txt"), *folder.glob("*.model")]):
        if path.stat().st_size > LONGEST_TOKENIZER:
            raise ValueError(f"{path}: longer than {LONGEST_TOKENIZER} bytes")
    path = folder / "config.json"
    if not path.is_file():
        return
    if path.stat().st_size > LONGEST_CONFIG:
        raise ValueError(f"{path}: longer than {LONGEST_CONFIG} bytes")
    try:
        numbers = list(_numbers(read_object(path.read_bytes())))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, it cannot be read ({error})") from None
    for key, value in numbers:
        counted = any(x in key for x in _COUNTED) and not any(x in key for x in _NOT_COUNTED)
        most = MOST_COUNTED if any(x in key for x in _OF_WORDS) else MOST_LAYERS
        if counted and abs(value) > most:
            raise ValueError(f"{path}: {key} is {str(value)[:20]}; allowed: up to {most}")


def _numbers(said: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in a config, under the keys that they are of; of a table its length."""
    if isinstance(said, dict | list):
        yield key, len(said)
        inner = said.items() if isinstance(said, dict) else ((key, value) for value in said)
        for name, value in inner:
            yield from _numbers(value, name)
    elif isinstance(said, int):
        yield key, said
