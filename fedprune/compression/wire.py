"""What travels: a question to a client and its answer, as bytes.

Both sides know the model's layout and, by digest, the mask; so only kept values travel, as one
flat buffer without indices. Everything here is really encoded and decoded in every engine: a
smaller value type costs the quality that it costs, and bytes are counted from the buffers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedprune.compression.masks import decode_mask, encode_mask
from fedprune.tensors import as_bytes, over_bytes

VALUE_TYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Packet:
    """One message on the wire.

    Attributes:
        head: what it is, as JSON.
        values: kept values, one flat buffer of one type.
        bits: an encoded mask (a question's mask, an answer's votes), or nothing.
    """

    head: bytes
    values: Buffer = b""
    bits: Buffer = b""

    def size(self, *, bits: bool = True) -> int:
        """Bytes on the wire, with or without the mask that the receiver may have already."""
        return len(self.head) + len(self.values) + (len(self.bits) if bits else 0)


def pack(head: dict[str, Any], values: Tensor, wire: str, bits: Buffer = b"") -> Packet:
    """A packet with flat values cast to the wire's type.

    Values beyond the range of fp16 become infinite there, which the receiver refuses.
    """
    cast = values.to(VALUE_TYPES[wire])
    text = json.dumps({**head, "wire": wire}, separators=(",", ":"))
    return Packet(text.encode(), as_bytes(cast), bits)


def head_of(packet: Packet) -> dict[str, Any]:
    """The head as a dictionary.

    Raises:
        ValueError: it is not a JSON object.
    """
    head = json.loads(bytes(packet.head))
    if not isinstance(head, dict):
        raise ValueError(f"head is {type(head).__name__}, expected an object")
    return head


def values_of(packet: Packet, *, shared: bool = False) -> Tensor:
    """The values as a flat fp32 tensor (cast back from the wire's type).

    Args:
        packet: what came.
        shared: spare a copy; the tensor may then be the packet's memory, not to be written to.

    Raises:
        ValueError: unknown type, or bytes that are no whole number of values.
    """
    wire = head_of(packet).get("wire")
    if wire not in VALUE_TYPES:
        raise ValueError(f"values of type {wire!r}, expected one of {', '.join(VALUE_TYPES)}")
    dtype = VALUE_TYPES[wire]
    if len(packet.values) % dtype.itemsize:
        raise ValueError(f"{len(packet.values)} bytes of values are no whole number of {wire}")
    return over_bytes(packet.values, dtype).to(torch.float32, copy=not shared)


def pack_flags(flags: Tensor) -> bytes:
    """A flat boolean tensor through the mask codec, near its entropy."""
    return encode_mask({"": flags})


def flags_of(data: Buffer, expected: int) -> Tensor:
    """The inverse of `pack_flags`.

    Raises:
        ValueError: not an encoded flat mask of the expected length.
    """
    decoded = decode_mask(bytes(data))
    if set(decoded) != {""} or decoded[""].numel() != expected:
        raise ValueError(f"expected {expected} flags")
    return decoded[""]
