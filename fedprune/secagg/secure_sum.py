"""The server's half of a secure sum: one try, and one more with those who are left.

It knows one port, a `Transport`: "put this stage to these partitions". Whoever drops out, the
result is the sum over the partitions that it names, or no sum at all. The stages of a try are
`fedprune.secagg.server_stages`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fedprune.codec.flags import pack_flags
from fedprune.config import RunConfig
from fedprune.options.refusal import Refused, counted
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import Broadcast, broadcast
from fedprune.protocol.checks import check_sum
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.models import layout_at
from fedprune.secagg.messages import Enclosure, Transport
from fedprune.secagg.server_stages import NarrowRange, SumCourse, VoidTry, opened_sum
from fedprune.secagg.shared_noise import fewest_left, noises_of
from fedprune.secagg.terms import terms_of
from fedprune.secagg.vectors import folded_from, length, pieces_of
from fedprune.structure.layout import Layout
from fedprune.tasks.options import Data

TRIES = 2
"""How often a sum is tried: with everyone, and with who was left."""

FEWEST_HOLDERS = 3
"""Clients that must hold a coordinate for its sum to be taken, where their masks differ."""

HOLDERS = "own"
"""Kind of the question that only counts who holds what."""


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
    """
    course = SumCourse(question, layout, config, transport)
    left, reason = tuple(sorted(partitions)), ""
    for attempt in range(1, TRIES + 1):
        fewest = config.secure_minimum or 3
        if len(left) < fewest:
            few = counted(len(left), "client is", "clients are")
            reason = reason or f"{few} fewer than secure-minimum={fewest}"
            break
        try:
            return course.closed(_tried(course, left, attempt), partitions, attempt)
        except VoidTry as void:
            left, reason = void.left, str(void)
    return course.closed(None, partitions, attempt, reason)


def _tried(course: SumCourse, members: tuple[int, ...], attempt: int) -> Aggregate:
    """One try, of one sum or, where clients' masks differ, of two: who holds what comes first."""
    question = course.question
    if not form_of(question, course.config, course.layout).own:
        return _sum(course, question, members, attempt)
    holders = _sum(course, replace(question, kind=HOLDERS), members, attempt)
    assert holders.votes is not None  # the form wants them
    open_ = pack_flags(holders.votes >= FEWEST_HOLDERS)
    try:
        return _sum(course, question, holders.answered, attempt, open_)
    except VoidTry as void:
        gone = len(holders.answered) - len(void.left)
        # A second count among those left would differ by what those who are gone hold.
        if 0 < gone < FEWEST_HOLDERS:
            why = f"{void}; counting again who holds what would show the masks of "
            raise VoidTry(f"{why}{counted(gone, 'client')}", ()) from None
        raise


def _sum(
    course: SumCourse,
    question: Question,
    members: tuple[int, ...],
    attempt: int,
    open_: bytes = b"",
) -> Aggregate:
    """The sum of one question's answers, in ranges that all of them fit into."""
    while True:
        try:
            return _sum_in_range(course, question, members, attempt, open_)
        except NarrowRange as narrow:
            course.coarse = narrow.coarse


def _sum_in_range(
    course: SumCourse, question: Question, members: tuple[int, ...], attempt: int, open_: bytes
) -> Aggregate:
    c = course.config
    sent = broadcast(question, c.wire, here=True)  # nothing changes while it is asked
    session = session_of(sent, members, attempt, c, course.coarse)
    terms = terms_of(c, session, members)
    form = form_of(question, c, course.layout)
    noises = noises_of(question, form, c, course.layout)
    pieces = pieces_of(question.kind, form, c, len(members), noises, course.coarse)
    enclosed = Enclosure(question, sent, length(pieces) + 1)
    fewest = len(members) if open_ else fewest_left(len(members), c) if noises else 0
    total, summed = opened_sum(course, terms, enclosed, open_, fewest)
    aggregate = folded_from(total, pieces, summed, terms.bits)
    try:
        if not noises:  # with noise, votes may well be negative
            check_sum(aggregate, form)
    except Refused as refused:
        raise VoidTry(f"the sum does not count: {refused.field}: {refused}", ()) from None
    return aggregate


def session_of(
    sent: Broadcast,
    members: Sequence[int],
    attempt: int,
    config: Data,
    coarse: Mapping[str, int] | None = None,
) -> bytes:
    """The name of a sum: a digest of what is asked, whom, how often before, how, and the seed."""
    wide = f"{sorted(coarse.items())}|" if coarse else ""
    sha = hashlib.sha256(f"{config.seed}|{attempt}|{members}|{wide}".encode())
    sha.update(sent.common.head)
    for name, data in sent.common.buffers.items():
        sha.update(b"" if name in sent.held else data)
    return sha.digest()
