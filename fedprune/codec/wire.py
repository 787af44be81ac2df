"""What travels: fields and buffers, values cast to a type of the wire, flags near their entropy.

Both sides know the model's layout and, by digest, the mask; so only kept values travel, as one
flat buffer without indices. Everything here is really encoded and decoded in every engine: a
smaller value type costs the quality that it costs, and bytes are counted from the buffers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedprune.codec.bounded import Buffer
from fedprune.codec.stochastic_rounding import BITS, decode_rounded, encode_rounded
from fedprune.runtime.json_text import number_at, read_object, whole_number
from fedprune.tensors.named import as_bytes, over_bytes

VALUE_TYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

OWN_TYPES = {dtype: name for name, dtype in VALUE_TYPES.items()}
"""What values travel as where nothing else is asked for: as they are."""

UPLINK_TYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "8 bits, rounded at random without bias",
    "int4": "4 bits, rounded at random without bias",
}
"""Types of what clients send when they tuned, with a line about each."""

SCORE_TYPES = {"fp32": "fp32", "fp16": "fp16-scaled", "log8": "log8"}
"""Types of statistics, and what they are on the wire. Their range is wide and their scale is
nobody's choice, so 16 bits are of values divided by the largest."""

SCORE_SUMMARIES = {
    "fp32": "float32",
    "fp16": "float16 of values divided by the largest",
    "log8": "8 bits: sign and logarithm of values divided by the largest",
}
"""A line about each type of statistics."""

_LEVELS = 126
_OCTAVES = 42.0


@dataclass(frozen=True)
class Packet:
    """One message on the wire: small fields, of which most have a head, and large buffers.

    Attributes:
        fields: by name; of a question or an answer its "head", what it is, as JSON.
        buffers: by name; an empty one need not be there. "values" and "more" are flat values of one
            type, which the head names; "bits" is an encoded mask.
        said: what it says, in the process that packed it, where reading gives that to the bit;
            it does not travel, and no copy has it.
    """

    fields: Mapping[str, Any]
    buffers: Mapping[str, Buffer] = field(default_factory=dict)
    said: object = field(default=None, init=False, compare=False, repr=False)

    def __getitem__(self, name: str) -> Buffer:
        """The buffer of this name, empty where there is none."""
        return self.buffers.get(name, b"")

    @property
    def head(self) -> Buffer:
        """What it is, as JSON."""
        head = self.fields.get("head", b"")
        return head if isinstance(head, bytes | memoryview) else str(head).encode()

    def size(self) -> int:
        """Bytes of all fields and buffers."""
        data = (
            f if isinstance(f, bytes | memoryview) else str(f).encode()
            for f in self.fields.values()
        )
        return sum(map(len, data)) + sum(map(len, self.buffers.values()))


def saying(packet: Packet, said: object) -> Packet:
    """The same packet, which was just packed, with what it says."""
    object.__setattr__(packet, "said", said)
    return packet


LONGEST_HEAD = 2**22
"""Bytes of a head: questions name the tensors they are about."""


def digest_of(coded: Buffer) -> str:
    """The name of a coded file's content, "" of nothing: the SHA-256 (hex) that it ends with."""
    return bytes(coded[-32:]).hex()


def pack(
    head: Mapping[str, Any],
    flats: Mapping[str, tuple[Tensor, str]],
    bits: Buffer = b"",
    gen: torch.Generator | None = None,
    *,
    fixed: bool = False,
) -> Packet:
    """A packet of flat values by the name of their buffer, each cast to a type of the wire.

    The head says the types ("wire" is that of "values", others are by their buffer's name) and the
    scale of scaled ones. Weights beyond the range of fp16 become infinite there, which the receiver
    refuses. Types that round at random draw from `gen`. With `fixed` the head is as long whatever
    its numbers are.
    """
    about, buffers = dict(head), dict[str, Buffer]()
    for name, (values, wire) in flats.items():
        if name == "values" or values.numel():
            buffers[name], said = _typed(name, values, wire, gen, fixed=fixed)
            about |= said
    if len(bits):
        buffers["bits"] = bits
    return Packet({"head": json_of(about, fixed=fixed).encode()}, buffers)


def _typed(
    name: str, values: Tensor, wire: str, gen: torch.Generator | None, *, fixed: bool
) -> tuple[Buffer, dict[str, Any]]:
    """The bytes of a buffer, and what the head says of them."""
    kind, scaled = _keys(name)
    if wire in BITS:
        assert gen is not None  # only answers to tuning have such a type, and a generator
        data = encode_rounded(values, BITS[wire], gen)
        return data, {kind: wire, "count": values.numel()}
    cast, scale = _cast(values, wire)
    implied = name == "values" and scale == 1.0 and not fixed
    return cast, {kind: wire} | ({} if implied else {scaled: scale})


def _keys(name: str) -> tuple[str, str]:
    """Under which words the head says type and scale of a buffer."""
    return ("wire", "scale") if name == "values" else (name, f"{name}_scale")


_ENCODER = json.JSONEncoder(separators=(",", ":"))

_WIDEST = "x" * 22
"""With its quotes as long as the longest float64 in JSON, -2.2250738585072014e-308."""


def json_of(about: Mapping[str, Any], *, fixed: bool = False) -> str:
    """An object as JSON; with `fixed` padded to what it would be with the longest of numbers."""
    text = _ENCODER.encode(about)
    if not fixed:
        return text
    widest = _ENCODER.encode(_with_widest(about))
    return text.ljust(len(widest))


def _with_widest(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_widest(inner) for key, inner in value.items()}
    return _WIDEST if isinstance(value, float) else value


def _cast(values: Tensor, wire: str) -> tuple[Buffer, float]:
    """The bytes and the scale that they are to be multiplied with."""
    if wire in VALUE_TYPES:
        return as_bytes(values.to(VALUE_TYPES[wire])), 1.0
    # A value that is not finite makes the scale so, and then every value: the receiver refuses.
    scale = float(values.abs().max()) if values.numel() else 1.0
    unit = values.float() / (scale or 1.0)
    if wire == "fp16-scaled":
        return as_bytes(unit.to(torch.float16)), scale
    return as_bytes(_to_log8(unit)), scale


def _uncast(data: Buffer, wire: str, scale: float, *, shared: bool, wide: bool) -> Tensor:
    dtype = {**VALUE_TYPES, "fp16-scaled": torch.float16, "log8": torch.uint8}.get(wire)
    if dtype is None:
        raise ValueError(f"values of type {wire!r}, expected one of {', '.join(VALUE_TYPES)}")
    if len(data) % dtype.itemsize:
        raise ValueError(f"{len(data)} bytes of values are no whole number of {wire}")
    raw = over_bytes(data, dtype)
    if wire in VALUE_TYPES:
        return raw.to(torch.float32 if wide else dtype, copy=not shared)
    return (_from_log8(raw) if wire == "log8" else raw.float()) * scale


def _to_log8(unit: Tensor) -> Tensor:
    """Values in [-1, 1] as sign bit and 7 bits: 0 is zero, 1 .. 127 a power of two up to 1.

    The levels are a third of an octave apart, so that a value is at most 12.3 % off; what lies
    below 2^-42 of the largest becomes zero.
    """
    level = 127 + torch.round(torch.log2(unit.abs()) * (_LEVELS / _OCTAVES))
    level = torch.nan_to_num(level, nan=0.0, neginf=0.0).clamp(0, 127)
    return (level + 128 * (unit < 0)).to(torch.uint8)


def _from_log8(codes: Tensor) -> Tensor:
    level = (codes & 127).float()
    size = torch.exp2((level - 127) * (_OCTAVES / _LEVELS))
    return torch.where(level > 0, size, 0.0) * torch.where(codes > 127, -1.0, 1.0)


def head_of(packet: Packet) -> dict[str, Any]:
    """The head as a dictionary; ValueError: it is no JSON object, or too long for one."""
    try:
        return read_object(packet.head, LONGEST_HEAD)
    except ValueError as error:
        raise ValueError(f"head: {error}") from None


def values_of(
    packet: Packet,
    name: str = "values",
    *,
    shared: bool = False,
    head: Mapping[str, Any] | None = None,
    wide: bool = True,
) -> Tensor:
    """A buffer's values as a flat fp32 tensor (cast back from the wire's type).

    Of a buffer that is not there they are none, unless it is "values". With `shared` a copy is
    spared: the tensor may then be the packet's memory, not to be written to. `head` is the
    packet's, where it was read before. Unless they are to be `wide`, numbers that came as fp16 or
    bf16 stay so.

    Raises:
        ValueError: unknown type, or bytes that are no whole number of values.
    """
    head = head_of(packet) if head is None else head
    if name != "values" and not packet[name]:
        return torch.empty(0)
    kind, scaled = _keys(name)
    wire = str(head.get(kind))
    if name == "values" and wire in BITS:
        return decode_rounded(packet[name], BITS[wire], whole_number(head, "count"))
    scale = number_at(head, scaled, 1.0)
    return _uncast(packet[name], wire, scale, shared=shared, wide=wide)
