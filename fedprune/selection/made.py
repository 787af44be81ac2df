"""Sequences whose elements are made whenever they are asked for, and kept by nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")


class Made(Sequence[_T]):
    """As many elements as there are keys, each made of its key."""

    def __init__(self, keys: Iterable[Any], make: Callable[[Any], _T]) -> None:
        self.keys, self.make = tuple(keys), make

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: Any) -> Any:
        return self.make(self.keys[at])
