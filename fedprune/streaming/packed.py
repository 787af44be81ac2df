"""Masks of models so large that a byte for every weight is too much: a bit for each.

And changed weights of such models: those that are kept alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedprune.tensors.holding import Bits
from fedprune.tensors.lazy import LazyTensors, holding_of, in_memory, shapes_of, some_of
from fedprune.tensors.named import Masks, Tensors, gathered, masked, scattered


class PackedMasks(LazyTensors):
    """Masks that are unpacked when one is asked for.

    Attributes:
        flags: by name, eight a byte in C order; None: all are True.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], bits: Mapping[str, Bits | None]) -> None:
        metas = {n: torch.empty(s, dtype=torch.bool, device="meta") for n, s in shapes.items()}
        super().__init__(metas, self._unpacked)
        self.flags = dict(bits)

    def _unpacked(self, name: str) -> Tensor:
        bits, shape = self.flags[name], self.shapes[name]
        if bits is None:
            return torch.ones(shape, dtype=torch.bool)
        flags = np.unpackbits(bits, count=shape.numel()).view(np.bool_)
        return torch.from_numpy(flags).reshape(shape)

    @cached_property
    def kept(self) -> int:
        """How many weights they keep."""
        shapes = self.shapes
        return sum(
            shapes[n].numel() if bits is None else int(np.bitwise_count(bits).sum(dtype=np.int64))
            for n, bits in self.flags.items()
        )

    def bits(self, name: str) -> Bits | None:
        """The flags of one; None: all are True."""
        return self.flags[name]

    def lie_where(self, same: Mapping[str, Tensor]) -> None:
        """Read the flags from where equal masks lie, and let go of the memory they were in."""
        self.flags = {n: holding_of(same).bits(n) for n in self.flags}

    def some(self, names: Iterable[str]) -> PackedMasks:
        """Those of these names."""
        those, shapes = list(names), self.shapes
        return PackedMasks({n: shapes[n] for n in those}, {n: self.flags[n] for n in those})

    def joined(self, others: Mapping[str, Tensor]) -> PackedMasks:
        """The same with others in place of those of their names."""
        bits = {n: holding_of(others).bits(n) for n in others}
        shapes = self.shapes | shapes_of(others)
        return PackedMasks(shapes, {**self.flags, **bits})


def masks_for(weights: Mapping[str, Tensor], names: Iterable[str]) -> Masks:
    """Masks that keep everything, not to be written to.

    One flag in memory for all, and packed where the weights are not kept in memory either.
    """
    shapes = shapes_of(some_of(weights, names))
    if in_memory(weights):
        kept = torch.ones((), dtype=torch.bool)
        return {name: kept.expand(shape) for name, shape in shapes.items()}
    return PackedMasks(shapes, dict.fromkeys(shapes))


def under_masks(weights: Tensors, masks: Masks) -> Tensors:
    """The weights, 0.0 where a mask is False.

    Where masks are not kept in memory, the weights that they remove are not either.
    """
    over = some_of(masks, weights)
    if in_memory(over):
        return masked(weights, over)
    values = {n: gathered({n: w}, {n: over[n]}) for n, w in weights.items()}

    def made(name: str) -> Tensor:
        mask = over[name]
        return scattered(values[name], {name: mask.shape}, {name: mask})[name]

    return LazyTensors(weights, made)
