"""Who shares a mask with whom, and whether those who are left are enough."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import lru_cache

from fedprune.options.refusal import counted
from fedprune.secagg.terms import Terms

STAGES = ("keys", "shares", "masked", "confirm", "unmask")
"""What each client sends, in this order."""


def neighbours_of(member: int, terms: Terms) -> tuple[int, ...]:
    """The `terms.neighbours` members that `member` shares a mask with, ascending.

    The relation is symmetric and leaves `member` itself out. The members sit in a circle, in an
    order drawn from the terms, and each is a neighbour of the nearest: a Harary graph whose nodes
    were shuffled, as in Bell et al. (eprint 2020/704, section 3.2).
    """
    order, seats = _circle(terms)
    n, seat = len(order), seats[member]
    steps = [s for d in range(1, terms.neighbours // 2 + 1) for s in (d, -d)]
    if terms.neighbours % 2:
        steps.append(n // 2)  # the one opposite; there is one, as n is even then
    return tuple(sorted(order[(seat + step) % n] for step in steps))


@lru_cache(maxsize=16)
def _circle(terms: Terms) -> tuple[tuple[int, ...], dict[int, int]]:
    def drawn(member: int) -> bytes:
        return hashlib.sha256(terms.binding + b"seat" + str(member).encode()).digest()

    order = tuple(sorted(terms.members, key=drawn))
    return order, {member: seat for seat, member in enumerate(order)}


def connected(present: Collection[int], terms: Terms) -> bool:
    """Whether every two of them are linked by neighbours who are present.

    Otherwise the masks of each part cancel within it and the server could open their sums apart.
    """
    left = set(present)
    reached = [left.pop()] if left else []
    while reached:
        near = left.intersection(neighbours_of(reached.pop(), terms))
        left -= near
        reached.extend(near)
    return not left


def enough(
    stage: str,
    roster: Collection[int],
    present: Collection[int],
    terms: Terms,
    *,
    shared: Collection[int] | None = None,
    summed: Collection[int] | None = None,
) -> str:
    """Why the sum cannot go on after this stage, one of `STAGES`, or "" if it can.

    It opens only if everyone's secret that is needed can be restored: the own masks of those who
    are summed, the keys of those who shared, are not summed and have neighbours who are.

    Args:
        stage: that has just ended.
        roster: whose keys came.
        present: who got through the stage.
        terms: of this sum.
        shared: whose shares came, for "masked" and later ones (default: the roster).
        summed: whose masked vectors came, for later ones (default: those who shared).
    """
    here = frozenset(present)
    sharing = frozenset(roster if shared is None else shared)
    late = stage in ("confirm", "unmask")
    adding = frozenset(sharing if summed is None else summed) if late else here
    if stage == "confirm" and len(here) < terms.confirmations:
        return (
            f"{counted(len(here), 'client confirms', 'clients confirm')} who is in the "
            f"sum, fewer than {terms.confirmations}"
        )
    if not late:
        if len(here) < terms.minimum:
            return (
                f"{counted(len(here), 'client is', 'clients are')} left after {stage}, "
                f"fewer than {terms.minimum}"
            )
        if not connected(here, terms):
            return f"those left after {stage} are not all connected"
    owners = adding if stage in ("keys", "shares") else adding | sharing
    for owner in sorted(owners):
        near = frozenset(neighbours_of(owner, terms))
        holders = len(near & here)
        if holders < terms.threshold and (owner in adding or near & adding):
            return (
                f"{holders} neighbours of client {owner} are left after {stage},"
                f" fewer than {terms.threshold}"
            )
    return ""
