"""Named tensors that are made when one is asked for: of models too large to be in memory.

The functions below ask the same of any named tensors, however they are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedprune.tensors.holding import Bits, InMemory, count_true, packed_bits


class LazyTensors(dict[str, Tensor]):
    """Named tensors that are made on the CPU whenever one is asked for, and kept by nobody.

    What the dictionary itself holds are tensors on PyTorch's meta device: shapes and types. The
    values are those of `origin` (None: of nothing), but for those `changed`, by name, and those
    removed.
    """

    in_memory: ClassVar[bool] = False

    def __init__(
        self,
        like: Mapping[str, Tensor],
        make: Callable[[str], Tensor],
        origin: object = None,
        changed: frozenset[str] = frozenset(),
        instead: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        metas = {n: shape_only(t) for n, t in bare_of(like).items()}
        super().__init__(metas)
        self._make, self.origin, self.changed = make, origin, changed
        self._instead = instead or {}  # by name, in what it is found; others are made

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, made."""
        super().__getitem__(name)  # KeyError, as of any dictionary
        return self._instead[name][name] if name in self._instead else self._make(name)

    def __iter__(self) -> Iterator[str]:
        """The names; without a method of its own for this, a copy would be of what is held."""
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor, made; or the default."""
        try:
            return self[name]
        except KeyError:
            return default

    def items(self) -> Any:
        """Pairs, one made after the other."""
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        """Tensors, one made after the other."""
        return (self[name] for name in self)

    def copy(self) -> dict[str, Tensor]:
        """The same, held the same way."""
        return self.some(self)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Name to shape, without making anything."""
        return {name: t.shape for name, t in super().items()}

    @property
    def bare(self) -> Mapping[str, Tensor]:
        """Shapes and types, without making anything."""
        return dict(zip(self, super().values(), strict=True))

    @property
    def kept(self) -> int:
        """Of masks: how many flags are True."""
        return sum(map(count_true, self.values()))

    def bits(self, name: str) -> Bits | None:
        """Of masks: the flags of one; None: all are True."""
        return packed_bits(self[name])

    def some(self, names: Iterable[str]) -> LazyTensors:
        """Those of these names."""
        held = {name: super(LazyTensors, self).__getitem__(name) for name in names}
        kept = {n: t for n, t in self._instead.items() if n in held}
        return LazyTensors(held, self._make, self.origin, self.changed, kept)

    def joined(self, others: Mapping[str, Tensor]) -> LazyTensors:
        """The same with others in place of those of their names, or beside them."""
        changed = self.changed | frozenset(others)
        like = {**self.bare, **bare_of(others)}
        # Not one around the other, as often as some are joined, and no more of them than stays.
        own = {n: some_of(others, [n]) for n in others}
        return LazyTensors(like, self._make, self.origin, changed, {**self._instead, **own})

    def under(self, masks: Mapping[str, Tensor]) -> LazyTensors:
        """The same, 0.0 where a mask is False."""

        def made(name: str) -> Tensor:
            t = self[name]
            mask = masks.get(name)
            return t if mask is None or bool(mask.all()) else t.masked_fill(~mask, 0.0)

        return LazyTensors(self, made, self.origin, self.changed)

    def on_cpu(self) -> LazyTensors:
        """The same: they are made there."""
        return self


def shape_only(tensor: Tensor) -> Tensor:
    """Its shape and type, on PyTorch's meta device.

    `torch.empty_like` would import sympy for a tensor that is there already, which takes 0.3 s.
    """
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")


def as_doubles(tensors: Mapping[str, Tensor]) -> LazyTensors:
    """The same in float64, each made when it is asked for: all of them are twice a model."""
    like = {
        n: torch.empty(s, dtype=torch.float64, device="meta") for n, s in shapes_of(tensors).items()
    }
    return LazyTensors(like, lambda name: tensors[name].double())


def holding_of(tensors: Mapping[str, Tensor]) -> InMemory | LazyTensors:
    """What can be asked of named tensors, however they are held."""
    return tensors if isinstance(tensors, LazyTensors) else InMemory(tensors)


def in_memory(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are all there, and not made when they are asked for."""
    return holding_of(tensors).in_memory


def bare_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Named tensors that say shapes and types, without making any."""
    return holding_of(tensors).bare


def some_of(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Those of these names."""
    return holding_of(tensors).some(names)


def joined_to(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with others in place of those of their names, or beside them."""
    return holding_of(tensors).joined(others)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Name to shape, in the same order."""
    return holding_of(tensors).shapes
