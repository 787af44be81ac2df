"""A frozen dataclass as tensors and JSON, and back, by the types of its fields.

What a run or a method remembers is such a value. Nothing here names a field: a new one is kept
because it has a type.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fedprune.tensors.named import Tensors, as_bytes, over_bytes

Json = Any


def taken_apart(value: Any, hint: Any, tensors: Tensors, at: str = "") -> Json:
    """The JSON of a value; its tensors are put under the names of their places.

    The value is of numbers, text, bytes, tensors, and tuples, sets, dictionaries and dataclasses of
    these; `hint` is its type, as `typing.get_type_hints` gives it, and `at` its place.

    Raises:
        TypeError: a type that is none of these.
    """
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in {types.UnionType, typing.Union}:
        return None if value is None else [taken_apart(value, _only(inner), tensors, at)]
    if hint is Tensor:
        tensors[at] = value
        return None
    if hint is bytes:
        tensors[at] = over_bytes(value, torch.uint8)
        return None
    if is_dataclass(hint):
        hints = _hints(typing.cast("Any", hint))
        names = [f.name for f in fields(hint)]
        return {n: taken_apart(getattr(value, n), hints[n], tensors, f"{at}/{n}") for n in names}
    if kind is dict or kind is Mapping:
        items = value.items()
        return [[k, taken_apart(v, inner[1], tensors, f"{at}/{k}")] for k, v in items]
    if kind in {tuple, frozenset}:
        each = _types(kind, inner, sorted(value) if kind is frozenset else list(value), at)
        return [taken_apart(v, k, tensors, f"{at}/{i}") for i, (k, v) in enumerate(each)]
    if hint in _PLAIN:
        return value
    raise TypeError(f"{at}: no way to keep a {hint}")


def put_together(kind: Any, told: Json, tensors: Mapping[str, Tensor], at: str = "") -> Any:
    """The value that `taken_apart` took apart, bit for bit, in the same order.

    Nothing is made to fit: a flag is no number, a number with a point no whole one, a field that
    is missing has no default, and NaN is no value.

    Raises:
        ValueError: the JSON is of another type, or a tensor is missing; its place is named.
        TypeError: a type that none of these is.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        if told is None:
            return None
        return put_together(_only(inner), _list(told, at, 1)[0], tensors, at)
    if kind in {Tensor, bytes}:
        return _kept(kind, told, tensors, at)
    if is_dataclass(kind):
        return _made(kind, told, tensors, at)
    if origin is dict or origin is Mapping:
        pairs = [_list(pair, at, 2) for pair in _list(told, at)]
        keys = [put_together(inner[0], key, {}, at) for key, _ in pairs]
        _check(len(set(keys)) == len(keys), at, "a name that occurs twice")
        values = [put_together(inner[1], v, tensors, f"{at}/{k}") for k, v in pairs]
        return dict(zip(keys, values, strict=True))
    if origin in {tuple, frozenset}:
        each = _types(origin, inner, _list(told, at), at)
        items = [put_together(k, v, tensors, f"{at}/{i}") for i, (k, v) in enumerate(each)]
        return origin(items)
    if kind in _PLAIN:
        return _plain(kind, told, at)
    raise TypeError(f"{at}: no way to keep a {kind}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check(good: bool, at: str, what: str) -> None:
    if not good:
        raise ValueError(f"{at or 'the whole'}: {what}")


def _list(told: Json, at: str, length: int | None = None) -> list[Any]:
    good = isinstance(told, list) and length in (None, len(told))
    _check(good, at, f"{type(told).__name__}, expected a list of {length or 'these'}")
    return typing.cast("list[Any]", told)


def _kept(kind: Any, told: Json, tensors: Mapping[str, Tensor], at: str) -> Tensor | bytes:
    """A tensor, or the bytes that one of bytes holds."""
    _check(told is None and at in tensors, at, "no tensor of this name is there")
    if kind is Tensor:
        return tensors[at]
    flat = tensors[at].dtype == torch.uint8 and tensors[at].dim() == 1
    _check(flat, at, "a tensor that is no bytes")
    return bytes(as_bytes(tensors[at]))


def _made(kind: Any, told: Json, tensors: Mapping[str, Tensor], at: str) -> Any:
    """A dataclass from all of its fields, and no others."""
    hints, names = _hints(kind), [f.name for f in fields(kind)]
    _check(isinstance(told, dict) and set(told) == set(names), at, f"no {kind.__name__}")
    return kind(**{n: put_together(hints[n], told[n], tensors, f"{at}/{n}") for n in names})


def _types(origin: Any, inner: tuple[Any, ...], told: list[Any], at: str) -> list[tuple[Any, Any]]:
    """Of each item its type, of a tuple or set of any length or a tuple of so many."""
    some = origin is frozenset or inner[1:] == (...,)
    kinds = [inner[0]] * len(told) if some else list(inner)
    _check(len(kinds) == len(told), at, f"{len(told)} items, expected {len(kinds)}")
    return list(zip(kinds, told, strict=True))


def _plain(kind: type, told: Json, at: str) -> int | float | str | bool:
    good = type(told) is kind or (kind is float and type(told) is int)
    _check(good, at, f"{type(told).__name__}, expected {kind.__name__}")
    # What is counted may be kept as a whole number where a float is meant.
    finite = abs(told) < 2**63 if type(told) is int else told == told
    _check(finite, at, "a number that nothing here has")
    return typing.cast("int | float | str | bool", told)


_PLAIN = (int, float, str, bool)


def _only(kinds: tuple[Any, ...]) -> Any:
    """The type beside None of what may be left out."""
    (kind,) = (k for k in kinds if k is not types.NoneType)
    return kind
