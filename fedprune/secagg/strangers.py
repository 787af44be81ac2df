"""What a client says in a stage that no client who keeps to the protocol says.

It is left out by name, before others compute with it: they would refuse it, each for itself, and
nobody could tell them from who lied.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from fedprune.protocol.failures import Failure
from fedprune.secagg.client import UNREADABLE
from fedprune.secagg.graph import neighbours_of
from fedprune.secagg.keys import KEY, Keys
from fedprune.secagg.primitives import agreed
from fedprune.secagg.register import UNSIGNED
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
    sent: Mapping[int, Mapping[int, bytes]], there: Collection[int], terms: Terms, size: int
) -> dict[int, str]:
    """The clients whose shares are not one for each neighbour there, of `size` bytes."""
    wrong = {}
    for member, shares in sent.items():
        near = {p for p in neighbours_of(member, terms) if p in there}
        if shares.keys() != near:
            wrong[member] = "shares are not one for each neighbour"
        elif any(len(share) != size for share in shares.values()):
            wrong[member] = "shares of another size"
    return wrong


def strangers_of(
    failures: Iterable[Failure], summed: Collection[int], terms: Terms
) -> tuple[dict[int, str], set[int]]:
    """Whose shares more than half of its neighbours in the sum could not read, and who said so.

    One neighbour alone that says so may lie.
    """

    def judges(culprit: int) -> set[int]:
        near = neighbours_of(culprit, terms) if culprit in terms.members else ()
        return set(near).intersection(summed)

    wrong, told = _blamed(failures, UNREADABLE.format(r"(\d{1,18})"), judges)
    return dict.fromkeys(wrong, "shares that its neighbours could not read"), told


def wrong_shown(
    odd: Mapping[int, str],
    wrong: Mapping[int, Collection[int]],
    shown: Mapping[int, Mapping[int, bytes]],
) -> list[str]:
    """What there is to say of clients who showed wrong shares at the end of a sum that is right.

    `odd` is what is wrong of clients' shares at a glance (`wrong_shares`), `wrong` is that of
    `Opened`.

    Who is wrong about more than half of its neighbours has lied; else that neighbour may have, who
    dealt the share.
    """
    ends = "the secure sum is right without them"
    out = [f"client {member} showed {why}; {ends}" for member, why in sorted(odd.items())]
    for member, owners in sorted(wrong.items()):
        if 2 * len(owners) > len(shown[member]):
            out.append(f"client {member} showed wrong shares; {ends}")
        elif owners:
            dealt = ", ".join(map(str, sorted(owners)))
            out.append(f"client {member} showed, or client {dealt} dealt, wrong shares; {ends}")
    return out


def unsigned(
    failures: Iterable[Failure], roster: Collection[int]
) -> tuple[dict[int, str], set[int]]:
    """Whose keys more than half of the others say are not its SuperNode's, and who said so."""

    def judges(culprit: int) -> set[int]:
        return set(roster) - {culprit} if culprit in roster else set()

    signed = [f for f in failures if UNSIGNED in f.reason]
    wrong, told = _blamed(signed, r"client (\d{1,18}) \(", judges)
    return dict.fromkeys(wrong, "keys that others do not know as its SuperNode's"), told


def _blamed(
    failures: Iterable[Failure], pattern: str, judges: Callable[[int], set[int]]
) -> tuple[set[int], set[int]]:
    """Whom more than half of its judges blame by their reasons, and those who did."""
    by: dict[int, set[int]] = {}
    for failure in failures:
        for found in re.findall(pattern, failure.reason):
            by.setdefault(int(found), set()).add(failure.partition)
    wrong = {p for p in by if 2 * len(by[p] & judges(p)) > len(judges(p))}
    return wrong, {p for culprit in wrong for p in by[culprit]} - wrong
