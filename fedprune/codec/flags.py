"""Flags, rungs and pairs of numbers as bytes: what travels beside values.

Who reads raises ValueError where the bytes are not what was written of so many.
"""

from __future__ import annotations

import struct

import numpy as np
import torch
from torch import Tensor

from fedprune.codec.bounded import Buffer
from fedprune.codec.masks import decode_mask, encode_mask

_PAIR = struct.Struct("<ii")


def pair(partition: int, round: int) -> bytes:
    """A client's number and the round of its newest change that is in an average, 0: in none."""
    return _PAIR.pack(partition, round)


def counted_of(data: Buffer) -> dict[int, int]:
    """The rounds by client of pairs that stand one behind the other."""
    if len(data) % _PAIR.size:
        raise ValueError(f"{len(data)} bytes are no whole number of pairs")
    return dict(_PAIR.iter_unpack(data))


def pack_flags(flags: Tensor) -> bytes:
    """A flat boolean tensor through the mask codec, near its entropy."""
    return encode_mask({"": flags})


def plain_flags(flags: Tensor) -> bytes:
    """A flat boolean tensor as its bits, eight a byte: as long whatever they are."""
    return np.packbits(flags.numpy()).tobytes()


def plain_flags_of(data: Buffer, expected: int) -> Tensor:
    """The inverse of `plain_flags`."""
    if len(data) != (expected + 7) // 8:
        raise ValueError(f"{len(data)} bytes, expected {expected} flags")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=expected)
    return torch.from_numpy(bits.astype(bool))


def flags_of(data: Buffer, expected: int) -> Tensor:
    """The inverse of `pack_flags`."""
    try:
        decoded = decode_mask(bytes(data), expected)
    except ValueError as error:
        raise ValueError(f"expected {expected} flags: {error}") from None
    if set(decoded) != {""} or decoded[""].shape != (expected,):
        raise ValueError(f"expected {expected} flags")
    return decoded[""]


def pack_rungs(rungs: Tensor) -> bytes:
    """A flat tensor of rungs (0: stays) as one mask a rung, over what the rungs before left."""
    flags: dict[str, Tensor] = {}
    left = rungs
    for rung in range(1, int(rungs.max()) + 1 if rungs.numel() else 1):
        flags[str(rung)] = left == rung
        left = left[left != rung]
    return encode_mask(flags)


def rungs_of(data: Buffer, expected: int) -> Tensor:
    """The inverse of `pack_rungs`, uint8."""
    rungs, left = torch.zeros(expected, dtype=torch.uint8), torch.arange(expected)
    decoded = decode_mask(bytes(data), 255 * expected)
    for rung, (name, flags) in enumerate(decoded.items(), 1):
        if name != str(rung) or rung > 255 or flags.shape != left.shape:
            raise ValueError(f"rung {rung} is of {flags.numel()} weights, {left.numel()} are left")
        rungs[left[flags]] = rung
        left = left[~flags]
    return rungs
