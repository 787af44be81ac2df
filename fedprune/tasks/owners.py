"""Owners of rows as clients: who is one, who only trains, and what no client holds.

An owner is a distinct value of ``--client-column``. Each is a client, unless ``--clients`` asks for
the largest ones. What is too little to be cut into train, validation and test is what
``--small-owners`` is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedprune.options.refusal import counted
from fedprune.tasks.options import Data

SMALL_OWNERS = {
    "train-only": "they are clients and train on all they have; others measure",
    "group": "joined in the order of their names until one client's rows can be split",
    "drop": "left out",
}


@dataclass(frozen=True)
class Population:
    """Who the clients of some rows are, and what of the rows no client holds.

    Attributes:
        clients: how many there are; those that ``--clients`` leaves out are not among them.
        possible: how many there could be.
        owners: distinct values of the client column; 0: nobody asked whose a row is.
        train_only: clients with too little to be measured on.
        grouped: owners that share a client with others.
        unasked: owners left out because ``--clients`` asks for the largest.
        dropped: owners left out because they have too little.
        rows_dropped: rows of all owners that are left out.
        rows_empty: rows without a text.
    """

    clients: int
    possible: int
    owners: int = 0
    train_only: int = 0
    grouped: int = 0
    unasked: int = 0
    dropped: int = 0
    rows_dropped: int = 0
    rows_empty: int = 0


def owned(
    config: Data, owners: Sequence[str], sizes: Sequence[int], fewest: int
) -> tuple[list[list[int]], Population]:
    """The row numbers of every client, each list ascending, in the order of the owners' names.

    Args:
        config: client column, what becomes of small owners, and how many clients: the largest by
            rows, or all where that is None.
        owners: whose each row is.
        sizes: how much each row is, in what a shard is cut by (1, or characters).
        fewest: the least that can be cut in three.

    Raises:
        ValueError: there are not that many, or nobody has enough to be measured on.
    """
    held: dict[str, list[int]] = {}
    for row, owner in enumerate(owners):
        held.setdefault(owner, []).append(row)
    size = {owner: sum(sizes[i] for i in rows) for owner, rows in held.items()}
    small = {owner for owner in held if size[owner] < fewest}
    members = _members(size, small, fewest, config.small_owners or "train-only")
    _check(config, len(held), small, members)
    rows = {name: sorted(i for o in own for i in held[o]) for name, own in members.items()}
    asked = len(rows) if config.clients is None else config.clients
    largest = sorted(sorted(rows, key=lambda name: (-len(rows[name]), name))[:asked])
    dealt = [rows[name] for name in largest]
    left = len(owners) - sum(map(len, dealt))
    return dealt, replace(_told(small, members, largest, len(held)), rows_dropped=left)


Members = Mapping[str, Sequence[str]]
"""The owners of every possible client, by the name of the first of them."""


def _members(size: Mapping[str, int], small: set[str], fewest: int, what: str) -> Members:
    alone = {owner: [owner] for owner in size if what == "train-only" or owner not in small}
    if what != "group":
        return alone
    together: list[list[str]] = [[]]
    for owner in sorted(small):
        together[-1].append(owner)
        if sum(size[o] for o in together[-1]) >= fewest:
            together.append([])
    rest = together.pop()
    if together:  # what is left is too little for a client of its own
        together[-1] += rest
    return alone | {group[0]: group for group in together}


def _check(config: Data, owners: int, small: set[str], members: Members) -> None:
    column = config.client_column
    where = f"data={config.data!r}" if column is None else f"client-column={column!r}"
    few = (
        f"{len(small)} of its {counted(owners, 'owner')} "
        f"{'has' if len(small) == 1 else 'have'} too little to be cut in three"
    )
    if members.keys() <= small and all(len(own) == 1 for own in members.values()):
        way = "--small-owners group, or " if config.small_owners != "group" else ""
        raise ValueError(f"{where}: {few}, nobody can be measured on; allowed: {way}more rows each")
    if config.clients is not None and config.clients > len(members):
        seen = f"{where} makes {len(members)}" + (f" ({few})" if small else "")
        raise ValueError(f"clients={config.clients}: {seen}; allowed: 1 to {len(members)}")


def _told(small: set[str], members: Members, largest: Sequence[str], owners: int) -> Population:
    inside = [members[name] for name in largest]
    possible = sum(map(len, members.values()))
    return Population(
        clients=len(largest),
        possible=len(members),
        owners=owners,
        train_only=sum(len(own) == 1 and own[0] in small for own in inside),
        grouped=sum(len(own) for own in inside if len(own) > 1),
        unasked=possible - sum(map(len, inside)),
        dropped=owners - possible,
    )


def sentences(population: Mapping[str, int]) -> list[str]:
    """What a reader should know of a population, by its fields' names; nothing of the usual one."""
    if not population:
        return []
    p = Population(**population)
    told = (
        (p.unasked, f"the {p.clients} largest of {p.possible} possible ones; owners left out: %d"),
        (p.train_only, "clients that only train, with too little to be measured on: %d"),
        (p.grouped, "owners with too little that share a client with others: %d"),
        (p.dropped, "owners with too little, left out: %d"),
        (p.rows_dropped, f"rows of those left out: {p.rows_dropped:,}"),
        (p.rows_empty, f"rows without a text, left out: {p.rows_empty:,}"),
    )
    return [line.replace("%d", str(count)) for count, line in told if count]
