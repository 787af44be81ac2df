"""Values of any type that can be kept, made from the types of their fields, and their equality."""

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

TINY = {"z": torch.tensor([[1e-40, -0.0], [float("inf"), 0.1]]), "a": torch.tensor(3.0)}
"""Numbers that are easily lost, in an order that is not the alphabet's."""


def filled(kind: Any, tensors: Mapping[str, Tensor] = TINY) -> Any:
    """A value of a type that leaves nothing out; no two numbers or texts in it are equal.

    Args:
        kind: as `typing.get_type_hints` gives it.
        tensors: what every dictionary of tensors in it holds.
    """
    return _filled(kind, tensors, count(1))


def _filled(kind: Any, tensors: Mapping[str, Tensor], number: Iterator[int]) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        return _filled(inner[0], tensors, number)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        made: Callable[..., Any] = typing.cast(Any, kind)
        return made(**{f.name: _filled(hints[f.name], tensors, number) for f in fields(kind)})
    if origin in {dict, Mapping}:
        if inner[1] is Tensor:
            return dict(tensors)
        keys = [_filled(inner[0], tensors, number) for _ in range(2)][::-1]
        return {key: _filled(inner[1], tensors, number) for key in keys}
    if origin in {tuple, frozenset}:
        return origin(_filled(inner[0], tensors, number) for _ in range(2))
    n = next(number)
    plain = {int: 2**40 + n, float: (0.1 + 0.2) * n, str: f"é {n}", bytes: b"\x00\xff%d" % n}
    return {**plain, bool: True, Any: n, Tensor: torch.tensor([-0.0, 1e-42, n])}[kind]


def alike(left: Any, right: Any) -> bool:
    """Equal bit for bit, types and orders included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape
        return same and left.numpy().tobytes() == right.numpy().tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(alike(left[k], right[k]) for k in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(alike, left, right))
    if is_dataclass(left):
        return alike(vars(left), vars(right))
    return bool(left == right)
