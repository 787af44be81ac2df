"""The bits of a model: its mask, and the edits that made its shape, as one buffer with one digest.

What a client has acknowledged is named by that digest and not sent again. Without edits both are
the mask's alone.
"""

from __future__ import annotations

import hashlib

import zstandard

from fedprune.codec.bounded import Buffer, unzipped
from fedprune.codec.masks import encode_mask, mask_digest
from fedprune.structure.edits import Edits, from_json, to_json
from fedprune.tensors.named import Masks

_MAGIC = b"EDIT"

_RATIO = 200
"""How many times smaller zstd may have made a list of edits: ascending numbers it makes a fifth."""


def model_digest(masks: Masks, edits: Edits) -> str:
    """SHA-256 (hex) over mask and edits."""
    digest = mask_digest(masks)
    if not edits:
        return digest
    return hashlib.sha256(f"{digest}|{to_json(edits)}".encode()).hexdigest()


def bits_of(masks: Masks, edits: Edits) -> bytes:
    """The encoded mask, behind the compressed edits where there are any."""
    if not edits:
        return encode_mask(masks)
    packed = zstandard.compress(to_json(edits).encode(), 9)
    return _MAGIC + len(packed).to_bytes(4, "little") + packed + encode_mask(masks)


def edits_in(bits: Buffer) -> Edits:
    """The edits of such a buffer; ValueError: they are damaged."""
    packed = bytes(_parts(bits)[0])
    if not packed:
        return ()
    try:
        return from_json(unzipped(packed, 2**16 + _RATIO * len(packed)).decode())
    except ValueError as error:
        raise ValueError(f"edits: {error}") from None


def mask_bits(bits: Buffer) -> Buffer:
    """The encoded mask of such a buffer, in its memory."""
    return _parts(bits)[1]


def _parts(bits: Buffer) -> tuple[memoryview, memoryview]:
    """The compressed edits, empty if there are none, and the encoded mask, in its memory."""
    head, whole = bytes(bits[:8]), memoryview(bits)
    size = int.from_bytes(head[4:], "little") if head[:4] == _MAGIC else 0
    start = 8 + size if size else 0
    return whole[start - size : start], whole[start:]
