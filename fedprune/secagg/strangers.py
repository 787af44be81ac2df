"""What a client says in a stage that no client who keeps to the protocol says.

It is left out by name, before others compute with it: they would refuse it, each for itself, and
nobody could tell them from who lied.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from fedprune.protocol.messages import Failure
from fedprune.secagg.client import UNREADABLE
from fedprune.secagg.graph import neighbours_of
from fedprune.secagg.keys import KEY, Keys
from fedprune.secagg.primitives import TAG, agreed
from fedprune.secagg.terms import Terms

_ANY_KEY = bytes(range(KEY))


def wrong_keys(roster: Mapping[int, Keys]) -> dict[int, str]:
    """The clients whose keys are of no use, and why: of low order, or there twice."""
    counts = Counter(key for keys in roster.values() for key in vars(keys).values())
    wrong = {}
    for member, keys in roster.items():
        if any(counts[key] > 1 for key in vars(keys).values()):
            wrong[member] = "a key is used twice"
        elif not (_useful(keys.channel) and _useful(keys.masking)):
            wrong[member] = "a key of low order"
    return wrong


def _useful(public: bytes) -> bool:
    try:
        agreed(_ANY_KEY, public, "", b"")
    except ValueError:
        return False
    return True


def wrong_shares(
    sent: Mapping[int, Mapping[int, bytes]], roster: Mapping[int, Keys], terms: Terms
) -> dict[int, str]:
    """The clients whose shares are not one for each neighbour in the roster, of the right size."""
    wrong = {}
    for member, shares in sent.items():
        near = {p for p in neighbours_of(member, terms) if p in roster}
        if shares.keys() != near:
            wrong[member] = "shares are not one for each neighbour"
        elif any(len(share) != 2 * KEY + TAG for share in shares.values()):
            wrong[member] = "shares of another size"
    return wrong


def unreadable(
    failures: Iterable[Failure], summed: Collection[int], terms: Terms
) -> tuple[dict[int, str], set[int]]:
    """Whose shares more than half of its neighbours in the sum could not read, and who said so.

    One neighbour alone that says so may lie.
    """
    by: dict[int, set[int]] = {}
    for failure in failures:
        if found := re.search(UNREADABLE.format(r"(\d{1,18})"), failure.reason):
            by.setdefault(int(found[1]), set()).add(failure.partition)
    near = {p: set(neighbours_of(p, terms)).intersection(summed) for p in by if p in terms.members}
    wrong = {p for p, there in near.items() if 2 * len(by[p] & there) > len(there)}
    told = {p for culprit in wrong for p in by[culprit]}
    return dict.fromkeys(wrong, "shares that its neighbours could not read"), told
