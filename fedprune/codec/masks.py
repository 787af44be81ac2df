"""Masks as bytes: at most one bit per weight, near the entropy where they are uneven.

The flags are coded as `fedprune.codec.bit_codes` does, all tensors together or each for itself,
whichever is smaller.

The bytes: `MASK_MAGIC`, a version byte, a checksum of the rest, a block of names and shapes, then
one block with the bits of all tensors or as many blocks as there are tensors. A block is a byte
that says its code, a length and so many bytes. Numbers are LEB128.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from fedprune.codec.bit_codes import (
    FlatFlags,
    coded_bits,
    decoded_bits,
    original_bytes,
    packed_bits_in,
    smaller_bytes,
)
from fedprune.codec.bounded import Buffer, most_weights
from fedprune.codec.mask_blocks import Cursor, mask_block, read_block, read_signatures, signature
from fedprune.runtime.json_text import MOST_TENSORS
from fedprune.streaming.packed import PackedMasks
from fedprune.tensors.holding import bytes_of_bits, packed_bits
from fedprune.tensors.lazy import bare_of, holding_of, shapes_of
from fedprune.tensors.named import Masks

MASK_MAGIC = b"FPMK"
VERSION = 1
CHECKSUM_BYTES = 8


def encode_mask(masks: Mapping[str, Tensor]) -> bytes:
    """The masks as self-describing bytes: names, shapes, order and every bit.

    For n >= 1 million weights at most 1.02 * n * H(density) / 8 + 64 bytes when the mask is
    random, and always at most n / 8 + 64 bytes, both plus names and shapes.

    Raises:
        ValueError: a tensor is not boolean.
    """
    shapes = shapes_of(masks)
    size = sum(shape.numel() for shape in shapes.values())
    header = b"".join(signature(name, shape) for name, shape in shapes.items())
    each = (mask_block(*coded_bits(_flat(n, m))) for n, m in masks.items())
    if len(masks) < 2:
        body: Iterable[bytes] = list(each) or [mask_block(*coded_bits(np.empty(0, bool)))]
    elif size < _LARGE:
        joined = np.concatenate([_flat(name, mask) for name, mask in masks.items()])
        ways = [mask_block(*coded_bits(joined))], list(each)
        body = min(ways, key=lambda way: sum(map(len, way)))
    else:  # one block for all of it saves nothing, and takes memory
        body = each
    return _file_of(chain([mask_block(*smaller_bytes(header))], body))


def _file_of(body: Iterable[bytes]) -> bytes:
    """The bytes of a file of these blocks, without all of them beside it."""
    file, sum_of_body = io.BytesIO(), hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    start = MASK_MAGIC + bytes([VERSION])
    file.write(start + bytes(CHECKSUM_BYTES))
    for block in body:
        file.write(block)
        sum_of_body.update(block)
    file.seek(len(start))
    file.write(sum_of_body.digest())
    return file.getvalue()


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


def _flat(name: str, mask: Tensor) -> FlatFlags:
    _check_boolean(name, mask)
    flat: FlatFlags = mask.detach().cpu().reshape(-1).numpy()
    return flat


def _check_boolean(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask of {name!r} must be boolean, got {mask.dtype}")


def _checksum(body: Buffer) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest()


_LARGE = 2**24
"""Bits that are coded together as well as tensor by tensor, whichever is smaller."""

_RATIO = 200
"""How many times smaller zstd may have made names and shapes: those of our models it makes 30."""


def _decode_body(
    stream: Cursor, most: int | None, known: Mapping[str, Sequence[int]] | None, *, packed: bool
) -> Masks:
    code, payload = read_block(stream)
    signatures = original_bytes(code, payload, 2**16 + _RATIO * len(payload))
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
        return PackedMasks(whole, {name: packed_bits_in(*b, size) for name, b, size in coded})
    if len(blocks) == 1:
        bits = decoded_bits(*blocks[0], sum(sizes))
        flats: Iterable[FlatFlags] = np.split(bits, np.cumsum(sizes, dtype=np.int64))[:-1]
    else:
        flats = (decoded_bits(*b, size) for b, size in zip(blocks, sizes, strict=True))
    named = zip(shapes.items(), flats, strict=True)
    if packed:
        return PackedMasks(whole, {n: packed_bits(torch.from_numpy(f)) for (n, _), f in named})
    return {name: torch.from_numpy(flat).reshape(shape) for (name, shape), flat in named}
