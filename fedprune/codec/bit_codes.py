"""Flags as bytes and back, at most a bit each: the smallest of four codes.

n flags of which a share d is True carry up to n * H(d) bits. The codes: the bits themselves; the
bits through zstd, which finds patterns (N of M, whole rows); the distances between the True or
between the False ones through pcodec (Pcodec, Loncaric et al. 2025, arXiv 2502.06112), which
reaches the entropy of random flags.
"""

from __future__ import annotations

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from fedprune.codec.bounded import Buffer, numbers_in, unzipped
from fedprune.tensors.holding import Bits, packed_bits

PLAIN, ZSTD, KEPT_GAPS, REMOVED_GAPS = range(4)

FlatFlags = NDArray[np.bool_]

_MANY = 2**18
"""Bits from which on it matters how long coding them takes."""

_AT_ONCE = 2**18
"""Positions that are worked out together: they take eight bytes each."""


def coded_bits(bits: FlatFlags) -> tuple[int, bytes]:
    """The smallest code of the bits, (size,), and its bytes."""
    codes = [smaller_bytes(np.packbits(bits).tobytes())]
    if bits.size < 2**32 and not _evenly_mixed(bits):  # distances are coded as 32-bit numbers
        rarer_kept = bool(2 * np.count_nonzero(bits) <= bits.size)
        codes.append((KEPT_GAPS if rarer_kept else REMOVED_GAPS, _gaps(bits, rarer_kept)))
    return min(codes, key=lambda code: len(code[1]))


def packed_bits_in(code: int, payload: Buffer, size: int) -> Bits | None:
    """What `coded_bits` was given, eight a byte; None where all are True."""
    if code not in (PLAIN, ZSTD):
        return packed_bits(torch.from_numpy(decoded_bits(code, payload, size)))
    packed = _packed(code, payload, size)
    return None if np.bitwise_count(packed).sum(dtype=np.int64) == size else packed


def _packed(code: int, payload: Buffer, size: int) -> Bits:
    """So many bits, eight a byte; over the same memory, unless they are compressed."""
    whole = (size + 7) // 8
    packed = np.frombuffer(original_bytes(code, payload, whole), np.uint8)
    if len(packed) != whole or (size % 8 and packed[-1] << size % 8 & 0xFF):
        raise ValueError(f"{len(packed)} bytes for {size} bits, or bits beyond")
    return packed


def decoded_bits(code: int, payload: Buffer, size: int) -> FlatFlags:
    """The inverse of `coded_bits`, (size,)."""
    if code in (PLAIN, ZSTD):
        return np.unpackbits(_packed(code, payload, size), count=size).view(np.bool_)
    if code not in (KEPT_GAPS, REMOVED_GAPS):
        raise ValueError(f"unknown code {code}")
    bits, before = np.full(size, code == REMOVED_GAPS), -1
    gaps = numbers_in(payload, size // 2) if payload else np.empty(0, np.uint32)  # the rarer ones
    if not gaps.all():
        raise ValueError("a position twice")
    for some in np.array_split(gaps, len(gaps) // _AT_ONCE + 1):
        positions = before + np.cumsum(some, dtype=np.int64)
        before = int(positions[-1]) if len(positions) else before
        if before >= size:
            raise ValueError(f"a position beyond {size} bits")
        bits[positions] = code == KEPT_GAPS
    return bits


def _evenly_mixed(bits: FlatFlags) -> bool:
    """Whether distances cannot be much shorter than the bits: of many, about half of them kept.

    At 43 % the entropy of random bits is 0.986 of a bit; patterns are what zstd finds.
    """
    return bits.size >= _MANY and 0.43 <= int(np.count_nonzero(bits)) / bits.size <= 0.57


def _gaps(bits: FlatFlags, flag: bool) -> bytes:
    """Distances from each such flag to the one before it (the first: from position -1), compressed.

    Positions, eight bytes each, are found for a part of the bits at a time.
    """
    parts, before = [np.empty(0, np.uint32)], -1
    for start in range(0, bits.size, _AT_ONCE):
        found = np.flatnonzero(bits[start : start + _AT_ONCE] == flag) + start
        parts.append(np.diff(found, prepend=before).astype(np.uint32))
        before = int(found[-1]) if found.size else before
    gaps = np.concatenate(parts)
    # Distances between random positions have no order to find: saying so saves a third of the time.
    config = ChunkConfig(
        compression_level=12, mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.no_op()
    )
    return bytes(standalone.simple_compress(gaps, config)) if gaps.size else b""


def smaller_bytes(data: bytes) -> tuple[int, bytes]:
    """The bytes, through zstd where that makes fewer of them, and the code of what was done."""
    smaller = zstandard.ZstdCompressor(level=3).compress(data)
    return (ZSTD, smaller) if len(smaller) < len(data) else (PLAIN, data)


def original_bytes(code: int, payload: Buffer, most: int) -> Buffer:
    """The inverse of `smaller_bytes`, `most` bytes at the most; ValueError if they are more."""
    return unzipped(payload, most) if code == ZSTD else payload
