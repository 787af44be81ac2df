"""Masks of models so large that a byte for every weight is too much: a bit for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.tensors.lazy import LazyTensors
from fedprune.tensors.named import Masks, full_masks

Bits = NDArray[np.uint8]


class PackedMasks(LazyTensors):
    """Masks that are unpacked when one is asked for.

    Attributes:
        bits: by name, eight flags a byte in C order; None: all are True.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], bits: Mapping[str, Bits | None]) -> None:
        metas = {n: torch.empty(s, dtype=torch.bool, device="meta") for n, s in shapes.items()}
        super().__init__(metas, self._unpacked)
        self.bits = dict(bits)

    def _unpacked(self, name: str) -> Tensor:
        bits, shape = self.bits[name], self.shapes[name]
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
            for n, bits in self.bits.items()
        )

    def packed(self, name: str) -> bytes:
        """The flags of one, eight a byte."""
        bits, size = self.bits[name], self.shapes[name].numel()
        if bits is not None:
            return bytes(bits)
        return b"\xff" * (size // 8) + bytes([0xFF << (8 - size % 8) & 0xFF]) * bool(size % 8)

    def some(self, names: Iterable[str]) -> PackedMasks:
        """Those of these names."""
        those, shapes = list(names), self.shapes
        return PackedMasks({n: shapes[n] for n in those}, {n: self.bits[n] for n in those})

    def joined(self, others: Mapping[str, Tensor]) -> PackedMasks:
        """The same with others in place of those of their names."""
        bits = {n: packed_bits(t) for n, t in others.items()}
        shapes = self.shapes | {n: t.shape for n, t in others.items()}
        return PackedMasks(shapes, {**self.bits, **bits})


def packed_bits(mask: Tensor) -> Bits | None:
    """The flags of a mask, eight a byte; None where all are True."""
    flags = mask.reshape(-1).numpy()
    return None if flags.all() else np.packbits(flags)


def masks_for(weights: Mapping[str, Tensor], names: Iterable[str]) -> Masks:
    """Masks that keep everything: packed where the weights are not kept in memory either."""
    if not isinstance(weights, LazyTensors):
        return full_masks(weights, names)
    shapes = weights.some(names).shapes
    return PackedMasks(shapes, dict.fromkeys(shapes))
