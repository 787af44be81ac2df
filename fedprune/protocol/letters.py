"""Questions and sums as plain fields, for whatever carries them between server and hosts.

Flower's records take numbers, strings, lists and bytes; this is the one place that says which
fields there are. No Flower here, so that both sides and the tests share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedprune.codec.bounded import Buffer
from fedprune.codec.wire import (
    Packet,
    counted_of,
    json_of,
    pack_counted,
)
from fedprune.options.refusal import Refused
from fedprune.protocol.messages import (
    Aggregate,
    failure_said,
    longest_about,
    plain,
)
from fedprune.protocol.parts import Part
from fedprune.runtime.json_text import LONGEST_TEXT, read_object
from fedprune.tensors import as_bytes, over_bytes

Fields = dict[str, Any]
Buffers = dict[str, bytes]


@dataclass(frozen=True)
class Letter:
    """What one side sends the other: small fields and large buffers."""

    fields: Fields
    buffers: Buffers


def identity(config: str) -> str:
    """A short name for a configuration's text, by which a device knows whether it has it."""
    return hashlib.sha256(config.encode()).hexdigest()[:16]


def question_letter(
    packet: Packet, partitions: list[int], *, bits: bool, teacher: bool = True
) -> Letter:
    """A question to a host: whom to ask, and mask and teacher only where they are lacking."""
    buffers = {"values": bytes(packet.values)}
    if packet.more:
        buffers["more"] = bytes(packet.more)
    if packet.rungs:
        buffers["rungs"] = bytes(packet.rungs)
    if bits:
        buffers["bits"] = bytes(packet.bits)
    if teacher and packet.teacher:
        buffers["teacher"] = bytes(packet.teacher)
    if packet.counted:  # nobody is told of others when they took part
        buffers["counted"] = pack_counted(counted_of(packet.counted), partitions)
    return Letter({"head": bytes(packet.head), "partitions": partitions}, buffers)


def packet_of(letter: Letter, bits: Buffer, teacher: Buffer = b"") -> Packet:
    """The packet of a question letter, with mask and teacher that came or that are held there."""
    given = letter.buffers
    head, values, more = letter.fields["head"], given["values"], given.get("more", b"")
    taught = given.get("teacher", teacher)
    rungs, counted = given.get("rungs", b""), given.get("counted", b"")
    return Packet(head, values, given.get("bits", bits), more, taught, rungs, counted)


def _types(answered: int) -> dict[str, torch.dtype]:
    """The tensors of a sum over so many that travel, and their types there."""
    return {
        "total": torch.float64,
        "votes": torch.uint8 if answered < 256 else torch.int64,
        "statistics": torch.float64,
        "held": torch.float64,
        "singles": torch.float32,
    }


def size_of(letter: Letter) -> int:
    """Bytes of a letter's fields and buffers."""
    text = sum(
        len(value) if isinstance(value, bytes) else len(str(value))
        for value in letter.fields.values()
    )
    return text + sum(len(data) for data in letter.buffers.values())


_PIECES = ("head", "values", "bits", "more")
"""What the packet of an answer may consist of."""


def parts_letter(parts: Sequence[Part]) -> Letter:
    """A device's reply: the coded answer of each of its partitions, and which of them failed."""
    failures = [asdict(part.failure) for part in parts if part.failure is not None]
    packets = {part.partition: part.packet for part in parts if part.packet is not None}
    buffers = {
        f"{p}.{piece}": bytes(vars(packet)[piece])
        for p, packet in packets.items()
        for piece in _PIECES
        if vars(packet)[piece]
    }
    about = {"answered": list(packets), "failures": failures}
    return Letter({"about": json.dumps(about, separators=(",", ":"))}, buffers)


def parts_in(letter: Letter, asked: Sequence[int], phase: str) -> list[Part]:
    """The parts that a device's letter holds, in the order of partitions; none is decoded.

    Args:
        letter: what came.
        asked: the partitions that were asked.
        phase: what for: failures are of this phase, whatever the device says.

    Raises:
        Refused: it is malformed, or speaks for partitions that were not asked.
    """
    try:
        about = read_object(letter.fields["about"], longest_about(len(asked)))
        answered = [_index(p) for p in about["answered"]]
        failures = [failure_said(f, phase) for f in about["failures"]]
        parts = [Part(p, _answer_packet(letter.buffers, p)) for p in answered]
        parts += [Part(failure.partition, failure=failure) for failure in failures]
    except Exception as error:  # whatever a stranger's reply raises is a refusal of that reply
        raise Refused("reply", plain(f"malformed: {error!r}")) from None
    check_spoken([part.partition for part in parts], asked)
    known = {f"{p}.{piece}" for p in answered for piece in _PIECES}
    if letter.buffers.keys() - known:
        unknown = sorted(letter.buffers.keys() - known)[0]
        raise Refused("reply", f"a buffer that nobody asked for: {unknown!r}"[:300])
    return sorted(parts, key=lambda part: part.partition)


def _index(said: Any) -> int:
    """A partition as another process wrote it.

    Raises:
        ValueError: it is no whole number from 0.
    """
    if isinstance(said, bool) or not isinstance(said, int) or said < 0:
        raise ValueError(f"{plain(repr(said)[:50])} is no partition")
    return said


def check_spoken(spoken: Sequence[int], asked: Collection[int]) -> None:
    """Refuse a reply that does not say of each partition asked, once, that it answers or failed.

    Raises:
        Refused: with the first few of both.
    """
    if sorted(spoken) != sorted(asked):
        said, wanted = _few(spoken), _few(asked)
        raise Refused("answered", f"speaks for partitions {said}, asked were {wanted}")


def _few(partitions: Collection[int]) -> str:
    shown = ", ".join(str(p)[:20] for p in sorted(partitions)[:5])
    return f"[{shown}{', ...' if len(partitions) > 5 else ''}]"


def _answer_packet(buffers: Mapping[str, bytes], partition: int) -> Packet:
    held = {piece: buffers.get(f"{partition}.{piece}", b"") for piece in _PIECES}
    return Packet(buffers[f"{partition}.head"], held["values"], held["bits"], held["more"])


def sum_letter(folded: Aggregate, *, fixed: bool = False) -> Letter:
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
    return Letter({"about": text}, buffers)


def folded_of(
    letter: Letter, asked: list[int], phase: str = "", most: int = LONGEST_TEXT
) -> Aggregate:
    """The sum that a letter holds, as far as its form can tell.

    Args:
        letter: what came.
        asked: the partitions that were asked.
        phase: what for: failures are of this phase, whatever the letter says; "": as it says.
        most: bytes that its fields may take.

    Raises:
        Refused: it is malformed, or speaks for partitions that were not asked.
    """
    try:
        about = read_object(letter.fields["about"], most)
        answered = tuple(_index(p) for p in about["answered"])
        tensors: dict[str, Any] = {
            n: _tensor(letter.buffers, n, dtype) for n, dtype in _types(len(answered)).items()
        }
        if tensors["votes"] is not None:
            tensors["votes"] = tensors["votes"].long()
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


def _tensor(buffers: Mapping[str, bytes], name: str, dtype: torch.dtype) -> Tensor | None:
    return over_bytes(buffers[name], dtype) if name in buffers else None
