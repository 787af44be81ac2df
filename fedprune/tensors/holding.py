"""Named tensors that are all in memory, and flags of masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bits = NDArray[np.uint8]
"""Flags of a mask, eight a byte in C order."""


@dataclass(frozen=True)
class InMemory:
    """Named tensors that are all there, asked as `fedprune.tensors.lazy.LazyTensors` are."""

    tensors: Mapping[str, Tensor]
    in_memory: ClassVar[bool] = True
    origin: ClassVar[object] = None
    changed: ClassVar[frozenset[str]] = frozenset()

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Name to shape, in the same order."""
        return {name: t.shape for name, t in self.tensors.items()}

    @property
    def bare(self) -> Mapping[str, Tensor]:
        """The tensors themselves."""
        return self.tensors

    @property
    def kept(self) -> int:
        """How many flags are True."""
        return sum(map(count_true, self.tensors.values()))

    def bits(self, name: str) -> Bits | None:
        """The flags of one; None: all are True."""
        return packed_bits(self.tensors[name])

    def some(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of these names."""
        return {name: self.tensors[name] for name in names}

    def joined(self, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same with others in place of those of their names, or beside them."""
        return {**self.tensors, **others}

    def under(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies, 0.0 where a mask is False."""
        return {
            name: t.masked_fill(~masks[name], 0.0) if name in masks else t.clone()
            for name, t in self.tensors.items()
        }

    def on_cpu(self) -> dict[str, Tensor]:
        """The same on the CPU."""
        return {name: t.detach().to("cpu") for name, t in self.tensors.items()}


def flags_in(mask: Tensor) -> NDArray[np.bool_]:
    """The flags of a mask that lie in memory: of one that is a single flag everywhere, that one."""
    flags: NDArray[np.bool_] = mask.cpu().numpy()
    return flags if any(flags.strides) or not flags.size else flags.flat[:1]


def count_true(mask: Tensor) -> int:
    """How many flags of a mask are True."""
    # NumPy counts bools many times faster than torch, whose sum makes an int64 of each first.
    flags = flags_in(mask)
    each = mask.numel() // flags.size if flags.size else 0
    return int(np.count_nonzero(flags)) * each


def packed_bits(mask: Tensor) -> Bits | None:
    """The flags of a mask, eight a byte; None where all are True."""
    return None if flags_in(mask).all() else np.packbits(mask.cpu().reshape(-1).numpy())


def bytes_of_bits(bits: Bits | None, size: int) -> bytes:
    """The bytes of the flags of a mask of some size; the flags that fill up the last one are 0."""
    if bits is not None:
        return bytes(bits)
    return b"\xff" * (size // 8) + bytes([0xFF << (8 - size % 8) & 0xFF]) * bool(size % 8)
