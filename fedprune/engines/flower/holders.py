"""Which device is asked for which partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedprune.engines.flower.announced import Announced
from fedprune.engines.flower.news import News

Assignment = tuple[int | None, list[int]]
"""A node, or None where nobody is there any more, and the partitions it is asked for."""


def holders_of(nodes: Mapping[int, Announced], news: News) -> dict[int, int]:
    """Partition to the device that holds it: the one that announced it first.

    A device that was started again may be there under a new node id before Flower has noticed
    that the old one is gone; until then the newcomer waits, and the news say so. Two devices with
    the same data would count it twice: the second is not asked.
    """
    holders, places = dict[int, int](), dict[str, int]()
    for i, node in nodes.items():
        if not node.device or node.failure is not None:
            continue
        first = places.setdefault(node.place, i) if node.place else i
        if first != i and node.labels.keys().isdisjoint(nodes[first].labels):
            news.notice(i, "data", _SAME.format(news.name(i), news.name(first)))
            continue
        for p in node.labels:
            if holders.setdefault(p, i) != i:
                news.notice(i, "partition-id", _TWICE.format(news.name(i), p))
    return holders


_TWICE = (
    "{} announces partition {} as the second one and is not asked; "
    "allowed: a partition-id of its own for each node"
)

_SAME = "{} has the same data as {} and is not asked; allowed: a folder of its own for each device"


def by_device(partitions: Sequence[int], holders: Mapping[int, int]) -> list[Assignment]:
    """One for each device that holds any of the partitions, and one for each that nobody holds."""
    assignments: dict[int, Assignment] = {}
    for p in partitions:
        node = holders.get(p)
        # A partition that nobody holds has one by itself; keys below 0 are no node ids.
        assignments.setdefault(-1 - p if node is None else node, (node, []))[1].append(p)
    return list(assignments.values())
