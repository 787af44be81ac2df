"""What server and hosts send each other in the stages of a secure sum, and its form on the way.

The question itself travels beside the call of the stage "masked", as in the open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedprune.protocol.broadcast import Broadcast
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Question
from fedprune.secagg.fixed_point import Ring

StageTable = Mapping[int, Mapping[int, bytes]]
"""From one client to others, or of one from others: a few bytes each."""


@dataclass(frozen=True)
class Call:
    """What clients are asked in one stage of a secure sum.

    Attributes:
        stage: keys, shares, masked, confirm, unmask.
        session: the name of the sum.
        members: everyone who was asked for keys, ascending.
        roster: everyone's public keys, and the signature that came with them, by their owner.
        shared: whose shares came ("masked", "confirm", "unmask").
        summed: whose vectors came ("confirm", "unmask").
        sealed: receiver to sender to encrypted share ("unmask").
        said: signatures of who is in the sum, by who signed ("unmask").
        open: which coordinates have enough holders, encoded; b"": all ("masked").
        coarse: field to the steps by which its range was widened (`fedprune.secagg.vectors`).
    """

    stage: str
    session: bytes
    members: tuple[int, ...]
    roster: Mapping[int, bytes] = field(default_factory=dict)
    shared: frozenset[int] = frozenset()
    summed: frozenset[int] = frozenset()
    sealed: StageTable = field(default_factory=dict)
    open: bytes = b""
    coarse: Mapping[str, int] = field(default_factory=dict)
    said: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class StageReply:
    """What clients say in one stage, for one host or for all.

    Attributes:
        keys: public keys, and a device's signature of them, by their owner ("keys").
        shares: sender to receiver to encrypted share ("shares"), or sender to owner to share
            ("unmask").
        total: the sum of masked vectors ("masked").
        summed: whose they are.
        said: signatures of who is in the sum, by who signed ("confirm").
        failures: who dropped out, and why.
        bytes_up: what devices have sent, or would have.
        resent: what devices were sent a second time.
    """

    keys: Mapping[int, bytes] = field(default_factory=dict)
    shares: StageTable = field(default_factory=dict)
    total: Ring | None = None
    summed: tuple[int, ...] = ()
    failures: tuple[Failure, ...] = ()
    bytes_up: int = 0
    resent: int = 0
    said: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def present(self) -> frozenset[int]:
        """Who got through the stage."""
        return frozenset((*self.keys, *self.shares, *self.summed, *self.said))


@dataclass(frozen=True)
class Enclosure:
    """What goes along with the stage "masked": the question, also encoded.

    And how many integers a masked vector has.
    """

    question: Question
    sent: Broadcast
    length: int


Transport = Callable[[Call, Sequence[int], Enclosure | None], StageReply]
"""Puts a stage to partitions, wherever they are, and gives back what they said."""


def merged_replies(replies: Iterable[StageReply]) -> StageReply:
    """What several hosts said, as one; their masked sums are added, the first one in place."""
    out = StageReply()
    for reply in replies:
        total = reply.total if out.total is None else out.total
        if reply.total is not None and out.total is not None:
            np.add(out.total, reply.total, out=out.total)
        out = StageReply(
            {**out.keys, **reply.keys},
            {**out.shares, **reply.shares},
            total,
            out.summed + reply.summed,
            out.failures + reply.failures,
            out.bytes_up + reply.bytes_up,
            out.resent + reply.resent,
            {**out.said, **reply.said},
        )
    return out


def call_for(call: Call, partitions: Collection[int]) -> Call:
    """The part of a call that concerns some partitions: of the shares, those that are for them."""
    mine = {p: given for p, given in call.sealed.items() if p in partitions}
    return replace(call, sealed=mine)
