"""The server's half of a secure sum: five stages, and one more try with those who are left.

It knows one port, a `Transport`: "put this stage to these partitions". Whoever drops out, the
result is the sum over the partitions that it names, or no sum at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fedprune.codec.flags import pack_flags
from fedprune.config import RunConfig
from fedprune.options.refusal import Refused, counted
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import Broadcast, broadcast
from fedprune.protocol.checks import check_sum
from fedprune.protocol.failures import Failure
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.models import layout_at
from fedprune.secagg.client import confirming
from fedprune.secagg.graph import enough
from fedprune.secagg.keys import KEY, Keys, keys_and_signature
from fedprune.secagg.messages import (
    Call,
    Enclosure,
    StageReply,
    Transport,
    call_for,
    call_packet,
)
from fedprune.secagg.primitives import TAG
from fedprune.secagg.ring import Ring
from fedprune.secagg.server import Unrecoverable, unmasked
from fedprune.secagg.shared_noise import fewest_left, noises_of
from fedprune.secagg.strangers import (
    strangers_of,
    unsigned,
    wrong_keys,
    wrong_shares,
    wrong_shown,
)
from fedprune.secagg.terms import Terms, terms_of
from fedprune.secagg.vectors import (
    folded_from,
    length,
    pieces_of,
    widened,
)
from fedprune.structure.layout import Layout

_DEALT = "shares of another secret than it showed"

TRIES = 2
"""How often a sum is tried: with everyone, and with who was left."""

FEWEST_HOLDERS = 3
"""Clients that must hold a coordinate for its sum to be taken, where their masks differ."""

HOLDERS = "own"
"""Kind of the question that only counts who holds what."""


_Said = TypeVar("_Said")


class _Void(Exception):
    """A try that came to nothing: why, and who could take part in the next one."""

    def __init__(self, reason: str, left: Collection[int]) -> None:
        super().__init__(reason)
        self.left = tuple(sorted(left))


def secure_sums(
    config: RunConfig, transport: Transport
) -> Callable[[Question, Sequence[int]], Aggregate]:
    """What puts a question to partitions by a transport and gives back their secure sum."""

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        layout = layout_at(config, question.edits)
        return secure_ask(question, partitions, layout, config, transport)

    return ask


def secure_ask(
    question: Question,
    partitions: Sequence[int],
    layout: Layout,
    config: RunConfig,
    transport: Transport,
) -> Aggregate:
    """The sum of the partitions' answers, which nobody has seen one by one.

    Partitions that drop out before their masked vector came are named in the failures. One that
    drops out later is in the sum. If too few are left at a stage, the sum is tried once more among
    them, in a session of its own; what the first try revealed opens nothing. If that fails too,
    or fewer than `secure_minimum` are asked, everyone has failed.

    Args:
        question: what is asked.
        partitions: of whom.
        layout: of the model that is asked about.
        config: complete configuration.
        transport: puts a stage to partitions.
    """
    course = _Course(question, layout, config, transport)
    left, reason = tuple(sorted(partitions)), ""
    for attempt in range(1, TRIES + 1):
        fewest = config.secure_minimum or 3
        if len(left) < fewest:
            reason = (
                reason
                or f"{counted(len(left), 'client is', 'clients are')} fewer than "
                f"secure-minimum={fewest}"
            )
            break
        try:
            return course.closed(_tried(course, left, attempt), partitions, attempt)
        except _Void as void:
            left, reason = void.left, str(void)
    return course.closed(None, partitions, attempt, reason)


@dataclass
class _Course:
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


def _tried(course: _Course, members: tuple[int, ...], attempt: int) -> Aggregate:
    """One try, of one sum or, where clients' masks differ, of two: who holds what comes first."""
    question = course.question
    if not form_of(question, course.config, course.layout).own:
        return _sum(course, question, members, attempt)
    holders = _sum(course, replace(question, kind=HOLDERS), members, attempt)
    assert holders.votes is not None  # the form wants them
    open_ = pack_flags(holders.votes >= FEWEST_HOLDERS)
    try:
        return _sum(course, question, holders.answered, attempt, open_)
    except _Void as void:
        gone = len(holders.answered) - len(void.left)
        if (
            0 < gone < FEWEST_HOLDERS
        ):  # a second count among those left would differ by what these hold
            why = (
                f"{void}; counting again who holds what would show the masks of "
                f"{counted(gone, 'client')}"
            )
            raise _Void(why, ()) from None
        raise


def _sum(
    course: _Course,
    question: Question,
    members: tuple[int, ...],
    attempt: int,
    open_: bytes = b"",
) -> Aggregate:
    """The sum of one question's answers, in ranges that all of them fit into.

    Raises:
        _Void: too few were left, or what came was no sum.
    """
    while True:
        try:
            return _sum_in_range(course, question, members, attempt, open_)
        except _Narrow as narrow:
            course.coarse = narrow.coarse


class _Narrow(Exception):
    """A client's numbers had no room, and nothing was opened: how wide ranges are the next time."""

    def __init__(self, coarse: Mapping[str, int]) -> None:
        super().__init__("ranges are too narrow")
        self.coarse = coarse


def _sum_in_range(
    course: _Course, question: Question, members: tuple[int, ...], attempt: int, open_: bytes
) -> Aggregate:
    c = course.config
    sent = broadcast(question, c.wire)
    session = session_of(sent, members, attempt, c, course.coarse)
    terms = terms_of(c, session, members)
    form = form_of(question, c, course.layout)
    noises = noises_of(question, form, c, course.layout)
    pieces = pieces_of(question.kind, form, c, len(members), noises, course.coarse)
    enclosed = Enclosure(question, sent, length(pieces) + 1)
    fewest = len(members) if open_ else fewest_left(len(members), c) if noises else 0
    total, summed = _opened(course, terms, enclosed, open_, fewest)
    aggregate = folded_from(total, pieces, summed, terms.bits)
    try:
        if not noises:  # with noise, votes may well be negative
            check_sum(aggregate, form)
    except Refused as refused:
        raise _Void(f"the sum does not count: {refused.field}: {refused}", ()) from None
    return aggregate


def session_of(
    sent: Broadcast,
    members: Sequence[int],
    attempt: int,
    config: RunConfig,
    coarse: Mapping[str, int] | None = None,
) -> bytes:
    """The name of a sum: a digest of what is asked, whom, how often before, how, and the seed."""
    wide = f"{sorted(coarse.items())}|" if coarse else ""
    sha = hashlib.sha256(f"{config.seed}|{attempt}|{members}|{wide}".encode())
    sha.update(sent.common.head)
    for name, data in sent.common.buffers.items():
        sha.update(b"" if name in sent.held else data)
    return sha.digest()


def _opened(
    course: _Course, terms: Terms, enclosed: Enclosure, open_: bytes, fewest: int
) -> tuple[Ring, tuple[int, ...]]:
    """The five stages of Bonawitz et al. 2017 (eprint 2017/281, figure 4).

    Fewer than `fewest` are not opened: coordinates were shown for the sake of clients who are not
    in the sum, or noise is missing.

    Raises:
        _Void: too few were left after one of them.
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
        raise _Narrow(wider)
    _require("masked", roster, summed, terms, shared=sent)
    if len(summed) < fewest:
        raise _Void(
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
    course: _Course, call: Call, roster: Mapping[int, Keys], total: Ring, terms: Terms
) -> Ring:
    """The stage "unmask", of those who confirmed, and the sum.

    Raises:
        _Void: it cannot be opened.
    """
    reply = course.put(call, call.said)
    odd = wrong_shares(reply.shares, call.shared, terms, KEY)
    shown = course.without(odd, reply.shares, "unmask")
    try:
        opened = unmasked(total, roster, call.shared, call.summed, shown, terms)
    except Unrecoverable as error:
        unread, by = strangers_of(reply.failures, call.summed, terms)
        wrong = unread | ({error.dealer: _DEALT} if error.dealer in terms.members else {})
        left = course.without(wrong, dict.fromkeys({*shown, *by}), "shares")
        raise _Void(str(error), left) from None
    course.notices += wrong_shown(odd, opened.wrong, shown)
    return opened.total


def _shares(
    course: _Course, call: Call, roster: Mapping[int, Keys], terms: Terms
) -> dict[int, Mapping[int, bytes]]:
    """The stage "shares".

    Raises:
        _Void: too few were left, or devices do not take keys of others for theirs.
    """
    reply = course.put(call, roster)
    sent = course.without(
        wrong_shares(reply.shares, roster, terms, 2 * KEY + TAG), reply.shares, "shares"
    )
    stray, by = unsigned(reply.failures, roster)
    if stray:
        left = course.without(stray, dict.fromkeys({*sent, *by}), "keys")
        raise _Void("devices do not take the keys of others for theirs", left)
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
        raise _Void(lacking, present)
