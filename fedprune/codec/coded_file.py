"""The coded file: a pruned model as its mask and its kept values, and how to get it back.

Layout: 8 bytes of magic, a 4-byte length, a JSON head, the encoded mask, the kept values
(little-endian, float32 or the types by name that the head says), and the SHA-256 of all before it.
"Bytes on disk" is the size of this file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedprune.codec.bounded import shapes_in
from fedprune.codec.masks import decode_mask, encode_mask
from fedprune.runtime.json_text import read_object, whole_number
from fedprune.tensors.lazy import bare_of, shapes_of
from fedprune.tensors.named import (
    Masks,
    Tensors,
    as_bytes,
    count_kept,
    gathered,
    kept_in,
    over_bytes,
    scattered,
)

FILE_MAGIC = b"FEDPRUN1"
CODED_NAME = "model.fedprune"

_FREE = 2**20
"""Values that a file may claim whatever its size."""

_DIGEST = 32

_EACH = 2**10
"""Further values for each byte of it. One that is kept takes four: a model keeps one of 4,096."""


def to_coded(origin: Mapping[str, Any], weights: Mapping[str, Tensor], masks: Masks) -> bytes:
    """The file's content.

    `origin` says how to build the dense model, see `origin_of`; of the state and the frozen
    parameters, weights are 0.0 where a mask is False.
    """
    return b"".join(coded_parts(origin, weights, masks))


def coded_parts(
    origin: Mapping[str, Any], weights: Mapping[str, Tensor], masks: Masks
) -> Iterator[bytes | memoryview]:
    """The same in pieces, the values tensor by tensor."""
    sha = hashlib.sha256()
    parts: Iterator[bytes | memoryview] = itertools.chain(
        _beginning(origin, weights, masks),
        (as_bytes(_kept(name, weights, masks)) for name in sorted(weights)),
    )
    for part in parts:
        sha.update(part)
        yield part
    yield sha.digest()


def coded_length(
    origin: Mapping[str, Any], weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> int:
    """How many bytes `to_coded` gives: of the weights only shapes and types matter."""
    bare = bare_of(weights)
    sizes = {n: t.element_size() if t.dtype in HALVES else 4 for n, t in bare.items()}
    values = sum(sizes[n] * kept_in(t, masks.get(n)) for n, t in bare.items())
    return sum(map(len, _beginning(origin, weights, masks))) + values + _DIGEST


def _beginning(
    origin: Mapping[str, Any], weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> list[bytes]:
    """What stands before the values."""
    mask = encode_mask(masks)
    head = {
        **origin,
        "mask_bytes": len(mask),
        "shapes": {n: list(s) for n, s in shapes_of(weights).items()},
    }
    kinds = {n: HALVES[t.dtype] for n, t in bare_of(weights).items() if t.dtype in HALVES}
    head |= {"types": kinds} if kinds else {}
    text = json.dumps(head, separators=(",", ":")).encode()
    return [FILE_MAGIC + len(text).to_bytes(4, "little") + text, mask]


HALVES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Types that values keep, as the head names them; others become float32."""


def _kept(name: str, weights: Mapping[str, Tensor], masks: Masks) -> Tensor:
    t = gathered({name: weights[name]}, masks)
    return t if t.dtype in HALVES else t.float()


def from_coded(data: bytes, name: str = "coded file") -> tuple[dict[str, Any], Tensors, Masks]:
    """Head, weights and masks of a coded file's content.

    Memory is bounded by the size of the content: 2**20 weights, and 1,024 further ones a byte.

    Raises:
        ValueError: it is no coded file, damaged or malformed; `name` is in the message. Nothing
            else is raised, whatever the bytes are.
    """
    if sys.byteorder != "little":
        raise ValueError(f"{name}: coded files are little-endian, this machine is not")
    if data[: len(FILE_MAGIC)] != FILE_MAGIC:
        raise ValueError(f"{name}: not a fedprune coded file")
    body, checksum = data[:-32], data[-32:]
    if hashlib.sha256(body).digest() != checksum:
        raise ValueError(f"{name}: damaged, its checksum does not fit its content")
    try:
        return _content(body)
    except Exception as error:  # sound bytes of another writer: what they raise is not known
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{name}: malformed: {reason}") from None


def _content(body: bytes) -> tuple[dict[str, Any], Tensors, Masks]:
    start, most = len(FILE_MAGIC) + 4, _FREE + _EACH * len(body)
    end = start + int.from_bytes(body[len(FILE_MAGIC) : start], "little")
    head = read_object(body[start:end])
    values_at = end + whole_number(head, "mask_bytes")
    if values_at > len(body):
        raise ValueError("it is cut short")
    shapes = shapes_in(head, "shapes")
    claimed = sum(s.numel() for s in shapes.values())
    if claimed > most:
        raise ValueError(f"it claims {claimed} values; allowed: {most} of a file of its size")
    masks = decode_mask(body[end:values_at], most, shapes)
    return head, _weights(body[values_at:], shapes, masks, head.get("types", {})), masks


def _weights(
    data: bytes, shapes: Mapping[str, torch.Size], masks: Masks, kinds: Mapping[str, str]
) -> Tensors:
    """The tensors of a file's values, in the order of their shapes."""
    known, out, at = {kind: dtype for dtype, kind in HALVES.items()}, dict[str, Tensor](), 0
    if not isinstance(kinds, dict) or not set(kinds.values()) <= set(known):
        raise ValueError(f"values of types other than float32, {', '.join(known)}")
    for name in sorted(shapes):
        dtype = known[kinds[name]] if name in kinds else torch.float32
        kept = count_kept({name: masks[name]}) if name in masks else shapes[name].numel()
        end = at + kept * dtype.itemsize
        flat = over_bytes(data[at:end], dtype)
        out |= scattered(flat, {name: shapes[name]}, masks)
        at = end
    if at != len(data):
        raise ValueError(f"{len(data)} bytes of values, its mask and types say {at}")
    return {name: out[name] for name in shapes}
