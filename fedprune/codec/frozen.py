"""A frozen dataclass as tensors and JSON, and back, by the types of its fields.

What a run or a method remembers is such a value. Nothing here names a field: a new one is kept
because it has a type.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from fedprune.tensors import Tensors, as_bytes, over_bytes

Json = Any


def taken_apart(value: Any, hint: Any, tensors: Tensors, at: str = "") -> Json:
    """The JSON of a value; its tensors are put under the names of their places.

    Args:
        value: of numbers, text, bytes, tensors, and tuples, sets, dictionaries and dataclasses of
            these.
        hint: its type, as `typing.get_type_hints` gives it.
        tensors: where tensors go, each with memory of its own.
        at: the value's place.

    Raises:
        TypeError: a type that is none of these.
    """
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in {types.UnionType, typing.Union}:
        return None if value is None else [taken_apart(value, _only(inner), tensors, at)]
    if hint is Tensor:
        tensors[at] = value.contiguous().clone()
        return None
    if hint is bytes:
        tensors[at] = over_bytes(value, torch.uint8)
        return None
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        names = [f.name for f in fields(hint)]
        return {n: taken_apart(getattr(value, n), hints[n], tensors, f"{at}/{n}") for n in names}
    if kind is dict or kind is Mapping:
        items = value.items()
        return [[k, taken_apart(v, inner[1], tensors, f"{at}/{k}")] for k, v in items]
    if kind in {tuple, frozenset}:
        inside, each = sorted(value) if kind is frozenset else value, _each(kind, inner, at)
        return [taken_apart(v, each, tensors, f"{at}/{i}") for i, v in enumerate(inside)]
    if hint in _PLAIN:
        return value
    raise TypeError(f"{at}: no way to keep a {hint}")


def put_together(kind: Any, told: Json, tensors: Mapping[str, Tensor], at: str = "") -> Any:
    """The value that `taken_apart` took apart, bit for bit, in the same order.

    Raises:
        KeyError, TypeError, ValueError: the JSON is of another type, or a tensor is missing.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        return None if told is None else put_together(_only(inner), told[0], tensors, at)
    if kind is Tensor:
        return tensors[at]
    if kind is bytes:
        return bytes(as_bytes(tensors[at]))
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        make: Callable[..., Any] = typing.cast(Any, kind)
        return make(**{n: put_together(hints[n], told[n], tensors, f"{at}/{n}") for n in told})
    if origin is dict or origin is Mapping:
        return {k: put_together(inner[1], v, tensors, f"{at}/{k}") for k, v in told}
    if origin in {tuple, frozenset}:
        return origin(put_together(inner[0], v, tensors, f"{at}/{i}") for i, v in enumerate(told))
    if kind in _PLAIN:
        return told
    raise TypeError(f"{at}: no way to keep a {kind}")


_PLAIN = (int, float, str, bool)


def _only(kinds: tuple[Any, ...]) -> Any:
    """The type beside None of what may be left out."""
    (kind,) = (k for k in kinds if k is not types.NoneType)
    return kind


def _each(origin: Any, inner: tuple[Any, ...], at: str) -> Any:
    """The type of what a tuple of any length or a set holds."""
    if origin is tuple and inner[1:] != (...,):
        raise TypeError(f"{at}: no way to keep a tuple of different things")
    return inner[0]
