"""The server's half of a secure sum, stage by stage: keys, shares, masked, confirm, unmask."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fedprune.options.refusal import counted
from fedprune.secagg.client import confirming
from fedprune.secagg.course import NarrowRange, SumCourse, VoidTry
from fedprune.secagg.graph import enough
from fedprune.secagg.keys import KEY, Keys, keys_and_signature
from fedprune.secagg.messages import Call, Enclosure
from fedprune.secagg.primitives import TAG
from fedprune.secagg.ring import Ring
from fedprune.secagg.server import Unrecoverable, unmasked
from fedprune.secagg.strangers import strangers_of, unsigned, wrong_keys, wrong_shares, wrong_shown
from fedprune.secagg.terms import Terms
from fedprune.secagg.vectors import widened

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
    """The stage "unmask", of those who confirmed, and the sum.

    Raises:
        VoidTry: it cannot be opened.
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
        raise VoidTry(str(error), left) from None
    course.notices += wrong_shown(odd, opened.wrong, shown)
    return opened.total


def _shares(
    course: SumCourse, call: Call, roster: Mapping[int, Keys], terms: Terms
) -> dict[int, Mapping[int, bytes]]:
    """The stage "shares".

    Raises:
        VoidTry: too few were left, or devices do not take keys of others for theirs.
    """
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
