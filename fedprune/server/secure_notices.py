"""What is worth knowing about secure sums: second tries, and sums that differ by one client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedprune.options.refusal import counted
from fedprune.protocol.aggregate import Aggregate
from fedprune.server.state import Book


def noticed(book: Book, kind: str, aggregate: Aggregate) -> Book:
    """The book after one more secure sum: who was in it, and what to say about it.

    Two sums over sets that differ by one client can be taken from each other. What is left is that
    client's part, as far as both were of the same question. It is said once for every two sets.
    """
    if not aggregate.tries:
        return book
    members, notices = frozenset(aggregate.answered), list(book.notices)
    if aggregate.tries > 1:
        notices.append(
            f"{kind}: the secure sum was tried again, "
            f"{counted(len(members), 'client is', 'clients are')} in it"
        )
    if not members or members in book.sums:
        return replace(book, notices=tuple(notices))
    apart = sorted(set(_apart(members, book.sums)))
    if apart:
        who = ", ".join(map(str, apart))
        notices.append(f"{kind}: this sum and an earlier one differ by one client alone: {who}")
    return replace(book, notices=tuple(notices), sums=(*book.sums, members))


def _apart(members: frozenset[int], earlier: Iterable[frozenset[int]]) -> Iterable[int]:
    """The clients that alone tell these members from those of an earlier sum."""
    for others in earlier:
        if len(odd := members ^ others) == 1:
            yield from odd
