"""The server's half of a secure sum, stage by stage: keys, shares, masked, confirm, unmask."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fedprune.config import RunConfig
from fedprune.options.refusal import counted
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Question
from fedprune.secagg.client import confirming
from fedprune.secagg.fixed_point import Ring
from fedprune.secagg.graph import enough
from fedprune.secagg.keys import KEY, Keys, keys_and_signature
from fedprune.secagg.messages import Call, Enclosure, StageReply, Transport, call_for
from fedprune.secagg.packets import call_packet
from fedprune.secagg.primitives import TAG
from fedprune.secagg.server import Unrecoverable, unmasked
from fedprune.secagg.strangers import strangers_of, unsigned, wrong_keys, wrong_shares, wrong_shown
from fedprune.secagg.terms import Terms
from fedprune.secagg.vectors import widened
from fedprune.structure.layout import Layout

_Said = TypeVar("_Said")


class VoidTry(Exception):
    """A try that came to nothing: why, and who could take part in the next one."""

    def __init__(self, reason: str, left: Collection[int]) -> None:
        super().__init__(reason)
        self.left = tuple(sorted(left))


@dataclass
class SumCourse:
    """A question on its way to a sum, and what has come of it so far.

    Attributes:
        question: what is asked.
        layout: of the model that is asked about.
        config: complete configuration.
        transport: puts a stage to partitions.
        failures: who dropped out, and why.
        coarse: field to the steps by which its range was widened.
        notices: who lied in a way that changed no sum.
        up: bytes that devices would have sent.
        down: bytes that they would have received.
    """

    question: Question
    layout: Layout
    config: RunConfig
    transport: Transport
    failures: dict[int, Failure] = field(default_factory=dict)
    coarse: Mapping[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    up: int = 0
    down: int = 0

    def put(
        self, call: Call, partitions: Collection[int], enclosed: Enclosure | None = None
    ) -> StageReply:
        """Put a stage to partitions."""
        asked = sorted(partitions)
        self.down += sum(call_packet(call_for(call, [p])).size() for p in asked)
        if enclosed is not None:
            self.down += enclosed.sent.size(asked)
        reply = self.transport(call, asked, enclosed)
        self.up += reply.bytes_up
        self.down += reply.resent
        for failure in reply.failures:
            where = failure.field or call.stage
            self.failures[failure.partition] = replace(
                failure, phase=self.question.kind, field=where
            )
        return reply

    def without(
        self, wrong: Mapping[int, str], said: Mapping[int, _Said], stage: str
    ) -> dict[int, _Said]:
        """What was said in a stage but for what is wrong of it, whose clients have failed."""
        kind = self.question.kind
        self.failures |= {p: Failure(p, kind, stage, why) for p, why in wrong.items()}
        return {p: each for p, each in said.items() if p not in wrong}

    def closed(
        self, aggregate: Aggregate | None, partitions: Sequence[int], tries: int, reason: str = ""
    ) -> Aggregate:
        """The sum with who is not in it and what it cost; without one, everyone has failed."""
        found = aggregate or Aggregate()
        missing = [p for p in sorted(partitions) if p not in found.answered]
        why = reason or "dropped out"
        kind = self.question.kind
        return replace(
            found,
            failures=tuple(self.failures.get(p, Failure(p, kind, "secure", why)) for p in missing),
            bytes_up=self.up,
            bytes_down=self.down,
            tries=tries,
            notices=tuple(self.notices),
        )


class NarrowRange(Exception):
    """A client's numbers had no room, and nothing was opened: how wide ranges are the next time."""

    def __init__(self, coarse: Mapping[str, int]) -> None:
        super().__init__("ranges are too narrow")
        self.coarse = coarse


_DEALT = "shares of another secret than it showed"


def opened_sum(
    course: SumCourse, terms: Terms, enclosed: Enclosure, open_: bytes, fewest: int
) -> tuple[Ring, tuple[int, ...]]:
    """The five stages of Bonawitz et al. 2017 (eprint 2017/281, figure 4).

    Fewer than `fewest` are not opened: coordinates were shown for the sake of clients who are not
    in the sum, or noise is missing.

    Raises:
        VoidTry: too few were left after one of them.
        NarrowRange: somebody's numbers had no room.
    """
    call = Call("keys", terms.session, terms.members, coarse=course.coarse)
    said_keys = course.put(call, terms.members).keys
    roster = {p: keys_and_signature(shown)[0] for p, shown in said_keys.items()}
    roster = course.without(wrong_keys(roster), roster, "keys")
    call = replace(call, stage="shares", roster={p: said_keys[p] for p in roster})
    _require("keys", roster, roster, terms)

    sent = _shares(course, call, roster, terms)
    call = replace(call, stage="masked", shared=frozenset(sent))

    came = course.put(replace(call, open=open_), sent, enclosed)
    summed = came.summed
    wider = widened(course.coarse, (f.reason for f in came.failures), terms.bits)
    if wider is not None:
        for failure in came.failures:
            del course.failures[failure.partition]
        raise NarrowRange(wider)
    _require("masked", roster, summed, terms, shared=sent)
    if len(summed) < fewest:
        raise VoidTry(
            f"{counted(len(summed), 'client')} gave their part, {fewest} were counted on", summed
        )
    sealed = {p: {q: given[p] for q, given in sent.items() if p in given} for p in summed}
    call = replace(call, stage="confirm", summed=frozenset(summed))
    said = course.put(call, summed).said
    agreeing = confirming(said, roster, call.summed, call.shared, terms)
    _require("confirm", roster, agreeing, terms, shared=sent, summed=summed)
    said = {p: said[p] for p in sorted(agreeing)}
    sealed = {p: sealed[p] for p in said}

    call = replace(call, stage="unmask", sealed=sealed, said=said)
    assert came.total is not None  # somebody is in it
    return _unmasked(course, call, roster, came.total, terms), tuple(sorted(summed))


def _unmasked(
    course: SumCourse, call: Call, roster: Mapping[int, Keys], total: Ring, terms: Terms
) -> Ring:
    """The stage "unmask", of those who confirmed, and the sum."""
    reply = course.put(call, call.said)
    odd = wrong_shares(reply.shares, call.shared, terms, KEY)
    shown = course.without(odd, reply.shares, "unmask")
    try:
        opened = unmasked(total, roster, call.shared, call.summed, shown, terms)
    except Unrecoverable as error:
        unread, by = strangers_of(reply.failures, call.summed, terms)
        wrong = unread | ({error.dealer: _DEALT} if error.dealer in terms.members else {})
        left = course.without(wrong, dict.fromkeys({*shown, *by}), "shares")
        raise VoidTry(str(error), left) from None
    course.notices += wrong_shown(odd, opened.wrong, shown)
    return opened.total


def _shares(
    course: SumCourse, call: Call, roster: Mapping[int, Keys], terms: Terms
) -> dict[int, Mapping[int, bytes]]:
    """The stage "shares"."""
    reply = course.put(call, roster)
    sent = course.without(
        wrong_shares(reply.shares, roster, terms, 2 * KEY + TAG), reply.shares, "shares"
    )
    stray, by = unsigned(reply.failures, roster)
    if stray:
        left = course.without(stray, dict.fromkeys({*sent, *by}), "keys")
        raise VoidTry("devices do not take the keys of others for theirs", left)
    _require("shares", roster, sent, terms)
    return sent


def _require(
    stage: str,
    roster: Collection[int],
    present: Collection[int],
    terms: Terms,
    **also: Collection[int],
) -> None:
    lacking = enough(stage, roster, present, terms, **also)
    if lacking:
        raise VoidTry(lacking, present)
