"""Reading bytes of others: what they unpack to is bounded before anything is unpacked.

Everything here raises ValueError, whatever the bytes are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from pcodec import standalone

from fedprune.runtime.files import panics_as_errors
from fedprune.runtime.json_text import MOST_TENSORS

Buffer = bytes | memoryview

_FREE = 2**24
"""Weights that a mask may be of whatever its size: one that keeps everything is a few bytes."""

_EACH = 2**13
"""Further weights for each byte of its bits: a mask keeps one of 6,000 and is not refused."""

_MOST_DIMENSIONS = 64  # as many as torch takes


def most_weights(size: int) -> int:
    """How many weights a mask whose bits take `size` bytes may be of where no layout is known."""
    return _FREE + _EACH * size


def shapes_in(said: Mapping[str, Any], key: str) -> dict[str, torch.Size]:
    """The shapes by name that an object holds under a key, of numbers that 63 bits can count."""
    found = said.get(key)
    if not isinstance(found, dict) or len(found) > MOST_TENSORS:
        raise ValueError(f"{key}: no shapes by name, or more than {MOST_TENSORS}")
    for name, shape in found.items():
        if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"{key}: {name[:100]!r} has no shape")
        if not all(type(size) is int and 0 <= size < 2**63 for size in shape):
            raise ValueError(f"{key}: {name[:100]!r} has a size that is no whole number from 0")
        if math.prod(size or 1 for size in shape) >= 2**63:
            raise ValueError(f"{key}: {name[:100]!r} is too large to be counted")
    return {name: torch.Size(shape) for name, shape in found.items()}


def unzipped(data: Buffer, most: int) -> bytes:
    """What zstd packed as one frame that says its size, of at most `most` bytes."""
    try:
        size = zstandard.frame_content_size(bytes(data))
        if not 0 <= size <= most:
            raise ValueError(f"claims {size} bytes; allowed: {most}")
        unpacker = zstandard.ZstdDecompressor()
        return unpacker.decompress(bytes(data), allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError, OverflowError) as error:
        raise ValueError(f"zstd: {error}") from None


def numbers_in(data: Buffer, most: int) -> NDArray[np.uint32]:
    """The at most `most` numbers that pcodec packed."""
    out = np.empty(most, np.uint32)
    try:
        with panics_as_errors():
            done = standalone.simple_decompress_into(bytes(data), out)
    except Exception as error:
        raise ValueError(f"pcodec: {error}") from None
    if not done.finished:
        raise ValueError(f"more than {most} numbers")
    return out[: done.n_processed]
