"""Masks as bytes: at most one bit per weight, near the entropy where they are uneven.

A mask of n weights with density d carries up to n * H(d) bits. Whichever of four codes is the
smallest is taken: the bits themselves; the bits through zstd, which finds patterns (N of M, whole
rows); the distances between kept or between removed weights through pcodec (Pcodec, Loncaric et al.
2025, arXiv 2502.06112), which reaches the entropy of random masks. All tensors together or each for
itself, whichever is smaller.

The bytes: `MASK_MAGIC`, a version byte, a checksum of the rest, a block of names and shapes, then
one block with the bits of all tensors or as many blocks as there are tensors. A block is a byte
that says its code, a length and so many bytes. Numbers are LEB128.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone
from torch import Tensor

from fedprune.codec.bounded import Buffer, most_weights, numbers_in, unzipped
from fedprune.codec.mask_blocks import Cursor, mask_block, read_block, read_signatures, signature
from fedprune.runtime.json_text import MOST_TENSORS
from fedprune.streaming.packed import PackedMasks
from fedprune.tensors.holding import Bits, bytes_of_bits, packed_bits
from fedprune.tensors.lazy import bare_of, holding_of, shapes_of
from fedprune.tensors.named import Masks

MASK_MAGIC = b"FPMK"
VERSION = 1
CHECKSUM_BYTES = 8

PLAIN, ZSTD, KEPT_GAPS, REMOVED_GAPS = range(4)

_Bools = NDArray[np.bool_]


def encode_mask(masks: Mapping[str, Tensor]) -> bytes:
    """The masks as self-describing bytes: names, shapes, order and every bit.

    For n >= 1 million weights at most 1.02 * n * H(density) / 8 + 64 bytes when the mask is
    random, and always at most n / 8 + 64 bytes, both plus names and shapes.

    Raises:
        ValueError: a tensor is not boolean.
    """
    shapes = shapes_of(masks)
    size = sum(shape.numel() for shape in shapes.values())
    ways: list[list[bytes]] = []
    if len(masks) < 2 or size < _LARGE:  # of more the head of a block is no matter, memory is
        flats = [_flat(name, mask) for name, mask in masks.items()]
        ways.append([mask_block(*_code_bits(np.concatenate([np.empty(0, bool), *flats])))])
    if len(masks) > 1:
        ways.append([mask_block(*_code_bits(_flat(n, m))) for n, m in masks.items()])
    header = b"".join(signature(name, shape) for name, shape in shapes.items())
    body = [mask_block(*_code_bytes(header)), *min(ways, key=lambda way: sum(map(len, way)))]
    return b"".join([MASK_MAGIC, bytes([VERSION]), _checksum(*body), *body])


def decode_mask(
    data: Buffer,
    most: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    packed: bool = False,
) -> Masks:
    """What `encode_mask` was given: equal masks under the same names in the same order.

    Args:
        data: the bytes.
        most: how many weights the masks may be of, all together; time and memory are bounded by
            it, whatever the bytes claim. None: `fedprune.codec.bounded.most_weights` of
            the bytes of their bits.
        shapes: of the tensors that masks may be of; None: any.
        packed: they stay eight flags a byte, where they are coded so in the memory of the bytes.

    Raises:
        ValueError: the bytes are not an encoded mask, not of this version, cut short, damaged, of
            more weights or of other tensors, or not as `encode_mask` writes them. Nothing else is
            raised, whatever the bytes are.
    """
    start = len(MASK_MAGIC) + 1 + CHECKSUM_BYTES
    if data[: len(MASK_MAGIC)] != MASK_MAGIC:
        raise ValueError(f"not an encoded mask: it does not start with {MASK_MAGIC!r}")
    if len(data) < start:
        raise ValueError(f"encoded mask is cut short: {len(data)} bytes")
    if data[len(MASK_MAGIC)] != VERSION:
        raise ValueError(f"encoded mask has version {data[len(MASK_MAGIC)]}, expected {VERSION}")
    body = memoryview(data)[start:]
    if data[len(MASK_MAGIC) + 1 : start] != _checksum(body):
        raise ValueError("encoded mask is cut short or damaged: its checksum does not match")
    try:
        return _decode_body(Cursor(body), most, shapes, packed=packed)
    except Exception as error:  # sound bytes of some other writer: the codecs raise what they like
        raise ValueError(f"encoded mask is malformed: {error}") from error


def mask_digest(masks: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, shapes and packed bits in sorted order of the names.

    Raises:
        ValueError: a tensor is not boolean.
    """
    sha, bare, held = hashlib.sha256(), bare_of(masks), holding_of(masks)
    for name in sorted(masks):
        _check_boolean(name, bare[name])
        sha.update(signature(name, bare[name].shape))
        sha.update(bytes_of_bits(held.bits(name), bare[name].numel()))
    return sha.hexdigest()


def _flat(name: str, mask: Tensor) -> _Bools:
    _check_boolean(name, mask)
    flat: _Bools = mask.detach().cpu().reshape(-1).numpy()
    return flat


def _check_boolean(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask of {name!r} must be boolean, got {mask.dtype}")


def _checksum(*body: Buffer) -> bytes:
    found = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    for part in body:
        found.update(part)
    return found.digest()


_MANY = 2**18
"""Bits from which on it matters how long coding them takes."""

_LARGE = 2**24
"""Bits that are coded together as well as tensor by tensor, whichever is smaller."""

_AT_ONCE = 2**18
"""Positions that are worked out together: they take eight bytes each."""

_RATIO = 200
"""How many times smaller zstd may have made names and shapes: those of our models it makes 30."""


def _decode_body(
    stream: Cursor, most: int | None, known: Mapping[str, Sequence[int]] | None, *, packed: bool
) -> Masks:
    code, payload = read_block(stream)
    signatures = _decode_bytes(code, payload, 2**16 + _RATIO * len(payload))
    shapes = read_signatures(Cursor(signatures), MOST_TENSORS if known is None else len(known))
    for name, shape in shapes.items():
        if known is not None and (name not in known or tuple(known[name]) != shape):
            raise ValueError(f"a mask of {name[:100]!r}, {shape}; there is no such tensor")
    sizes = [math.prod(shape) for shape in shapes.values()]
    blocks: list[tuple[int, Buffer]] = []
    while not stream.over:
        if len(blocks) > len(sizes):
            raise ValueError("more blocks than masks")
        blocks.append(read_block(stream))
    if most is None:
        most = most_weights(sum(len(bits) for _, bits in blocks))
    if sum(sizes) > most:
        raise ValueError(f"it is of {sum(sizes)} weights; allowed: {most}")
    whole = {name: torch.Size(shape) for name, shape in shapes.items()}
    if packed and len(blocks) == len(sizes):
        coded = zip(whole, blocks, sizes, strict=True)
        return PackedMasks(whole, {name: _packed_bits_in(*b, size) for name, b, size in coded})
    if len(blocks) == 1:
        bits = _decode_bits(*blocks[0], sum(sizes))
        flats: Iterable[_Bools] = np.split(bits, np.cumsum(sizes, dtype=np.int64))[:-1]
    else:
        flats = (_decode_bits(*b, size) for b, size in zip(blocks, sizes, strict=True))
    named = zip(shapes.items(), flats, strict=True)
    if packed:
        return PackedMasks(whole, {n: packed_bits(torch.from_numpy(f)) for (n, _), f in named})
    return {name: torch.from_numpy(flat).reshape(shape) for (name, shape), flat in named}


def _code_bits(bits: _Bools) -> tuple[int, bytes]:
    """The smallest code of the bits, (size,), and its bytes."""
    codes = [_code_bytes(np.packbits(bits).tobytes())]
    if bits.size < 2**32 and not _evenly_mixed(bits):  # distances are coded as 32-bit numbers
        rarer_kept = 2 * np.count_nonzero(bits) <= bits.size
        codes.append((KEPT_GAPS, _gaps(bits)) if rarer_kept else (REMOVED_GAPS, _gaps(~bits)))
    return min(codes, key=lambda code: len(code[1]))


def _packed_bits_in(code: int, payload: Buffer, size: int) -> Bits | None:
    """What `_code_bits` was given, eight a byte; None where all are True."""
    if code not in (PLAIN, ZSTD):
        return packed_bits(torch.from_numpy(_decode_bits(code, payload, size)))
    packed = _packed(code, payload, size)
    return None if np.bitwise_count(packed).sum(dtype=np.int64) == size else packed


def _packed(code: int, payload: Buffer, size: int) -> Bits:
    """So many bits, eight a byte; over the same memory, unless they are compressed."""
    whole = (size + 7) // 8
    packed = np.frombuffer(_decode_bytes(code, payload, whole), np.uint8)
    if len(packed) != whole or (size % 8 and packed[-1] << size % 8 & 0xFF):
        raise ValueError(f"{len(packed)} bytes for {size} bits, or bits beyond")
    return packed


def _decode_bits(code: int, payload: Buffer, size: int) -> _Bools:
    """The inverse of `_code_bits`, (size,)."""
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


def _evenly_mixed(bits: _Bools) -> bool:
    """Whether distances cannot be much shorter than the bits: of many, about half of them kept.

    At 43 % the entropy of random bits is 0.986 of a bit; patterns are what zstd finds.
    """
    return bits.size >= _MANY and 0.43 <= int(np.count_nonzero(bits)) / bits.size <= 0.57


def _gaps(bits: _Bools) -> bytes:
    """Distances from each True to the one before it (the first: from position -1), compressed."""
    gaps = np.diff(np.flatnonzero(bits), prepend=-1).astype(np.uint32)
    # Distances between random positions have no order to find: saying so saves a third of the time.
    config = ChunkConfig(
        compression_level=12, mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.no_op()
    )
    return bytes(standalone.simple_compress(gaps, config)) if gaps.size else b""


def _code_bytes(data: bytes) -> tuple[int, bytes]:
    smaller = zstandard.ZstdCompressor(level=3).compress(data)
    return (ZSTD, smaller) if len(smaller) < len(data) else (PLAIN, data)


def _decode_bytes(code: int, payload: Buffer, most: int) -> Buffer:
    return unzipped(payload, most) if code == ZSTD else payload
