"""Stages of a secure sum as bytes: calls and replies to packets and back, tables and vectors."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.privacy.discretise import MOST
from fedprune.protocol.failures import failure_said, longest_about, plain
from fedprune.protocol.replies import check_spoken
from fedprune.runtime.json_text import read_object
from fedprune.secagg.fixed_point import Ring, ring_type
from fedprune.secagg.keys import keys_and_signature
from fedprune.secagg.messages import Call, StageReply, StageTable

LONGEST_CALL = 2**22
"""Bytes of what a call says in JSON: it names everyone who is in a sum three times."""


def call_packet(call: Call) -> Packet:
    """A call as fields and buffers."""
    about: dict[str, Any] = {
        "stage": call.stage,
        "session": call.session.hex(),
        "members": call.members,
        "shared": sorted(call.shared),
        "summed": sorted(call.summed),
    }
    about |= {"coarse": call.coarse} if call.coarse else {}
    tables = {"roster": _own(call.roster)}
    tables |= {"sealed": table_bytes(call.sealed), "open": call.open, "said": _own(call.said)}
    fields = {"call": json.dumps(about, separators=(",", ":"))}
    return Packet(fields, {name: data for name, data in tables.items() if data})


def call_of(packet: Packet) -> Call:
    """The call that a packet holds; Refused if it is malformed."""
    try:
        about = read_object(packet.fields["call"], LONGEST_CALL)
        return Call(
            str(about["stage"]),
            bytes.fromhex(about["session"]),
            tuple(int(p) for p in about["members"]),
            _owned(packet.buffers.get("roster", b"")),
            frozenset(int(p) for p in about["shared"]),
            frozenset(int(p) for p in about["summed"]),
            table_of(packet.buffers.get("sealed", b"")),
            bytes(packet.buffers.get("open", b"")),
            {str(f): min(MOST, max(0, int(n))) for f, n in about.get("coarse", {}).items()},
            _owned(packet.buffers.get("said", b"")),
        )
    except Exception as error:  # whatever a stranger's packet raises is a refusal of it
        raise Refused("call", plain(f"malformed: {error!r}")) from None


def reply_packet(reply: StageReply) -> Packet:
    """A reply as fields and buffers."""
    about = {
        "summed": reply.summed,
        "failures": [asdict(failure) for failure in reply.failures],
        "bytes_up": reply.bytes_up,
    }
    buffers = {
        "keys": _own(reply.keys),
        "shares": table_bytes(reply.shares),
        "said": _own(reply.said),
    }
    if reply.total is not None:
        buffers["total"] = vector_bytes(reply.total)
    return Packet({"about": json.dumps(about)}, {n: b for n, b in buffers.items() if b})


def reply_of(
    packet: Packet, asked: Collection[int], stage: str, bits: int, length: int = 0
) -> StageReply:
    """The reply that a packet holds, as far as its form can tell.

    Failures are of this `stage`, whatever the reply says; `length` is how many integers, of so many
    `bits`, a masked vector has.

    Raises:
        Refused: it is malformed, of another size, or speaks for partitions that were not asked.
    """
    try:
        about = read_object(packet.fields["about"], longest_about(len(asked)))
        keys = _owned(packet.buffers.get("keys", b""))
        reply = StageReply(
            {p: given for p, given in keys.items() if keys_and_signature(given)},
            table_of(packet.buffers.get("shares", b"")),
            _vector(packet.buffers.get("total"), bits, length),
            tuple(int(p) for p in about["summed"]),
            tuple(failure_said(failure, stage) for failure in about["failures"]),
            int(about["bytes_up"]),
            said=_owned(packet.buffers.get("said", b"")),
        )
        if bool(reply.summed) != (reply.total is not None) or reply.bytes_up < 0:
            raise ValueError("a sum of nobody, or nobody's, or of less than 0 bytes")
    except Exception as error:  # whatever a stranger's packet raises is a refusal of it
        raise Refused("reply", plain(f"malformed: {error!r}")) from None
    twice = [p for p, n in Counter(reply.summed).items() if n > 1]
    check_spoken([*reply.present, *twice, *(f.partition for f in reply.failures)], asked)
    return reply


_ENTRY = struct.Struct("<III")


def table_bytes(table: StageTable) -> bytes:
    """A table as bytes: of every entry both clients, its length, itself; b"" if empty."""
    return b"".join(
        _ENTRY.pack(one, other, len(data)) + data
        for one, row in sorted(table.items())
        for other, data in sorted(row.items())
    )


def _own(of: Mapping[int, bytes]) -> bytes:
    """The table in which everyone has one entry, about itself."""
    return table_bytes({p: {p: data} for p, data in of.items()})


def _owned(data: Buffer) -> dict[int, bytes]:
    """The inverse of `_own`."""
    return {p: row[p] for p, row in table_of(data).items()}


def table_of(data: Buffer) -> dict[int, dict[int, bytes]]:
    """The inverse of `table_bytes`; a client with an empty row is not in it.

    Raises:
        ValueError: not a whole number of entries.
    """
    table: dict[int, dict[int, bytes]] = {}
    at = 0
    while at < len(data):
        one, other, size = _ENTRY.unpack(
            bytes(data[at : at + _ENTRY.size]).ljust(_ENTRY.size, b"\xff")
        )
        at += _ENTRY.size + size
        if at > len(data):
            raise ValueError("a table that ends within an entry")
        table.setdefault(one, {})[other] = bytes(data[at - size : at])
    return table


def vector_bytes(vector: Ring) -> bytes:
    """A vector's integers, little endian."""
    return vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()


def _vector(data: Buffer | None, bits: int, length: int) -> Ring | None:
    if data is None:
        return None
    kind = ring_type(bits)
    vector = np.frombuffer(data, kind.newbyteorder("<")).astype(kind)
    if len(vector) != length:
        raise ValueError(f"{len(vector)} integers, expected {length}")
    return vector
