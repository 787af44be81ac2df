"""What hosts reply, as packets, and back: the answers of a device, or one sum.

No Flower here, so that both sides and the tests share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import Packet, json_of
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate, count_type
from fedprune.protocol.failures import failure_said, longest_about, plain
from fedprune.protocol.parts import PartitionPart
from fedprune.runtime.json_text import LONGEST_TEXT, read_object
from fedprune.tensors.named import as_bytes, over_bytes


def identity(config: str) -> str:
    """A short name for a configuration's text, by which a device knows whether it has it."""
    return hashlib.sha256(config.encode()).hexdigest()[:16]


def question_name(sent: Packet) -> str:
    """A short name for what a packet asks of whom, which the reply to it repeats.

    It says nothing of what a device has already, which is sent or left out.
    """
    call, partitions = (str(sent.fields.get(key, "")) for key in ("call", "partitions"))
    return identity(f"{bytes(sent.head)!r} {call} {partitions}")


def named_reply(reply: Packet, name: str) -> Packet:
    """A reply to the question of this name."""
    return replace(reply, fields={**reply.fields, _TO: name})


def unnamed(reply: Packet) -> tuple[Packet, object]:
    """A reply without the name of the question that it is to, and that name."""
    fields = dict(reply.fields)
    name = fields.pop(_TO, None)
    return replace(reply, fields=fields), name


_TO = "to"


def _types(answered: int) -> dict[str, torch.dtype]:
    """The tensors of a sum over so many that travel, and their types there."""
    return {
        "total": torch.float64,
        "votes": count_type(answered),
        "statistics": torch.float64,
        "held": torch.float64,
        "singles": torch.float32,
        "resampled": torch.float64,
    }


_BUFFERS = ("values", "bits", "more")
"""What the packet of an answer may hold beside its head."""


def parts_packet(parts: Sequence[PartitionPart]) -> Packet:
    """A device's reply: the coded answer of each of its partitions, and which of them failed."""
    failures = [asdict(part.failure) for part in parts if part.failure is not None]
    packets = {part.partition: part.packet for part in parts if part.packet is not None}
    buffers = {
        f"{p}.{name}": data
        for p, packet in packets.items()
        for name, data in {"head": packet.head, **packet.buffers}.items()
        if data
    }
    about = {"answered": list(packets), "failures": failures}
    return Packet({"about": json.dumps(about, separators=(",", ":"))}, buffers)


def parts_in(packet: Packet, asked: Sequence[int], phase: str) -> list[PartitionPart]:
    """The parts that a device's packet holds, in the order of partitions; none is decoded.

    Failures are of this `phase`, whatever the device says.

    Raises:
        Refused: it is malformed, or speaks for partitions that were not asked.
    """
    try:
        about = read_object(packet.fields["about"], longest_about(len(asked)))
        answered = [_index(p) for p in about["answered"]]
        failures = [failure_said(f, phase) for f in about["failures"]]
        parts = [PartitionPart(p, _answer_packet(packet.buffers, p)) for p in answered]
        parts += [PartitionPart(failure.partition, failure=failure) for failure in failures]
    except Exception as error:  # whatever a stranger's reply raises is a refusal of that reply
        raise Refused("reply", plain(f"malformed: {error!r}")) from None
    check_spoken([part.partition for part in parts], asked)
    known = {f"{p}.{name}" for p in answered for name in ("head", *_BUFFERS)}
    if packet.buffers.keys() - known:
        unknown = sorted(packet.buffers.keys() - known)[0]
        raise Refused("reply", f"a buffer that nobody asked for: {unknown!r}"[:300])
    return sorted(parts, key=lambda part: part.partition)


def _index(said: Any) -> int:
    """A partition as another process wrote it."""
    if isinstance(said, bool) or not isinstance(said, int) or said < 0:
        raise ValueError(f"{plain(repr(said)[:50])} is no partition")
    return said


def check_spoken(spoken: Sequence[int], asked: Collection[int]) -> None:
    """Refuse a reply that does not say of each partition asked, once, that it answers or failed."""
    if sorted(spoken) != sorted(asked):
        said, wanted = _few(spoken), _few(asked)
        raise Refused("answered", f"speaks for partitions {said}, asked were {wanted}")


def _few(partitions: Collection[int]) -> str:
    shown = ", ".join(str(p)[:20] for p in sorted(partitions)[:5])
    return f"[{shown}{', ...' if len(partitions) > 5 else ''}]"


def _answer_packet(buffers: Mapping[str, Buffer], partition: int) -> Packet:
    held = {name: buffers.get(f"{partition}.{name}", b"") for name in _BUFFERS}
    head = buffers[f"{partition}.head"]
    return Packet({"head": head}, {name: data for name, data in held.items() if data})


def sum_packet(folded: Aggregate, *, fixed: bool = False) -> Packet:
    """A host's reply as one sum: of the values in float64, of votes, and who answered or failed.

    With `fixed` it is as long whatever its numbers are.
    """
    about: dict[str, Any] = {
        "weight": folded.weight,
        "totals": folded.totals,
        "answered": folded.answered,
        "failures": [asdict(f) for f in folded.failures],
        "bytes_up": folded.bytes_up,
    }
    about |= {"norms": folded.norms} if folded.norms else {}
    about |= {"loud": folded.loud} if folded.loud else {}
    types = _types(len(folded.answered))
    tensors = {name: vars(folded)[name] for name in types}
    buffers = {n: bytes(as_bytes(t.to(types[n]))) for n, t in tensors.items() if t is not None}
    text = json_of(about, fixed=True) if fixed else json.dumps(about)
    return Packet({"about": text}, buffers)


def folded_of(
    packet: Packet, asked: list[int], phase: str = "", most: int = LONGEST_TEXT
) -> Aggregate:
    """The sum that a packet holds, as far as its form can tell.

    Failures are of this `phase`, whatever the packet says; "": as it says. Its fields may take
    `most` bytes.

    Raises:
        Refused: it is malformed, or speaks for partitions that were not asked.
    """
    try:
        about = read_object(packet.fields["about"], most)
        answered = tuple(_index(p) for p in about["answered"])
        tensors: dict[str, Any] = {
            n: over_bytes(packet.buffers[n], dtype) if n in packet.buffers else None
            for n, dtype in _types(len(answered)).items()
        }
        if tensors["singles"] is not None:
            tensors["singles"] = tensors["singles"].reshape(len(answered), -1)
        folded = Aggregate(
            weight=float(about["weight"]),
            totals={str(k): float(v) for k, v in about["totals"].items()},
            answered=answered,
            failures=tuple(failure_said(f, phase or f["phase"]) for f in about["failures"]),
            bytes_up=int(about["bytes_up"]),
            norms=tuple(float(norm) for norm in about.get("norms", ())),
            loud=tuple((_index(p), float(size)) for p, size in about.get("loud", ())),
            **tensors,
        )
    except Exception as error:  # whatever a stranger's reply raises is a refusal of that reply
        raise Refused("reply", plain(f"malformed: {error!r}")) from None
    check_spoken([*folded.answered, *(f.partition for f in folded.failures)], asked)
    return folded
