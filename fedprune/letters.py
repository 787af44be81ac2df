"""Questions and sums as plain fields, for whatever carries them between server and hosts.

Flower's records take numbers, strings, lists and bytes; this is the one place that says which
fields there are. No Flower here, so that both sides and the tests share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedprune.compression.wire import Buffer, Packet
from fedprune.messages import Failure, Folded, Refused, check, expected_values
from fedprune.pruning.layout import Layout
from fedprune.tensors import Masks, as_bytes, count_kept, over_bytes

Fields = dict[str, Any]
Buffers = dict[str, bytes]

_TOTALS = {"score": {"count"}, "tune": {"loss", "count"}, "evaluate": {"loss", "correct", "count"}}
"""Names of the sums that come with an answer, by the question's kind."""


@dataclass(frozen=True)
class Letter:
    """What one side sends the other: small fields and large buffers."""

    fields: Fields
    buffers: Buffers


def identity(config: str) -> str:
    """A short name for a configuration's text, by which a device knows whether it has it."""
    return hashlib.sha256(config.encode()).hexdigest()[:16]


def question_letter(packet: Packet, partitions: list[int], *, bits: bool) -> Letter:
    """A question to a host: which partitions to ask, and the mask only where it is lacking."""
    buffers = {"values": bytes(packet.values)}
    if bits:
        buffers["bits"] = bytes(packet.bits)
    return Letter({"head": bytes(packet.head), "partitions": partitions}, buffers)


def packet_of(letter: Letter, bits: Buffer) -> Packet:
    """The packet of a question letter, with the mask that came or that the receiver holds."""
    return Packet(letter.fields["head"], letter.buffers["values"], letter.buffers.get("bits", bits))


def sum_letter(folded: Folded) -> Letter:
    """A host's reply: one float64 sum, one sum of votes, and who answered or failed."""
    about = {
        "weight": folded.weight,
        "totals": folded.totals,
        "answered": folded.answered,
        "failures": [asdict(f) for f in folded.failures],
        "bytes_up": folded.bytes_up,
    }
    buffers: Buffers = {}
    if folded.total is not None:
        buffers["total"] = bytes(as_bytes(folded.total))
    if folded.votes is not None:
        buffers["votes"] = bytes(as_bytes(folded.votes))
    return Letter({"about": json.dumps(about)}, buffers)


def folded_of(letter: Letter, asked: list[int]) -> Folded:
    """The sum that a letter holds, as far as its form can tell.

    Raises:
        Refused: it is malformed, or speaks for partitions that were not asked.
    """
    try:
        about = json.loads(letter.fields["about"])
        folded = Folded(
            _tensor(letter.buffers, "total", torch.float64),
            float(about["weight"]),
            {str(k): float(v) for k, v in about["totals"].items()},
            _tensor(letter.buffers, "votes", torch.int64),
            tuple(int(p) for p in about["answered"]),
            tuple(_failure(**f) for f in about["failures"]),
            int(about["bytes_up"]),
        )
    except _MALFORMED as error:
        raise Refused("reply", f"malformed: {error!r}"[:300]) from None
    spoken = sorted([*folded.answered, *(f.partition for f in folded.failures)])
    if spoken != sorted(asked):
        raise Refused("answered", f"speaks for partitions {spoken}, asked were {sorted(asked)}")
    return folded


_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What reading a letter raises that is not what it should be."""


def _failure(partition: Any, phase: Any, field: Any, reason: Any) -> Failure:
    return Failure(int(partition), str(phase), str(field)[:300], str(reason)[:300])


def _tensor(buffers: Mapping[str, bytes], name: str, dtype: torch.dtype) -> Tensor | None:
    return over_bytes(buffers[name], dtype) if name in buffers else None


def check_sum(folded: Folded, kind: str, masks: Masks, layout: Layout) -> None:
    """Refuse a host's sum that would spoil the server's: a server cannot trust a device.

    Raises:
        Refused: with the field and the reason.
    """
    if folded.bytes_up < 0:
        raise Refused("bytes_up", f"{folded.bytes_up} is below 0")
    if not folded.answered:
        if folded != Folded(failures=folded.failures, bytes_up=folded.bytes_up):
            raise Refused("answered", "a sum that nobody answered for")
        return
    if folded.totals.keys() != _TOTALS[kind]:
        raise Refused(
            "totals", f"{sorted(folded.totals)[:9]}, expected {sorted(_TOTALS[kind])}"[:300]
        )
    if folded.totals["count"] < 0:
        raise Refused("count", f"{folded.totals['count']} is below 0")
    total = torch.empty(0) if folded.total is None else folded.total
    check(total, folded.weight, folded.totals, kind, masks, layout)
    votes = folded.votes
    if votes is None:
        return
    if kind != "score" or votes.numel() != count_kept(masks):
        raise Refused(
            "votes", f"{votes.numel()} votes, expected {expected_values('score', masks, layout)}"
        )
    if votes.numel() and not 0 <= int(votes.min()) <= int(votes.max()) <= len(folded.answered):
        raise Refused("votes", "counts outside 0 to the number of clients")
