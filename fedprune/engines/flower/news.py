"""What there is to say of nodes that do not take part: each thing once, in the next round's row."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from flwr.serverapp import Grid

from fedprune.engines.flower.announced import Announced, networked
from fedprune.engines.flower.clocks import clock_off
from fedprune.engines.flower.exchange import patiently
from fedprune.protocol.failures import Failure, plain
from fedprune.runtime.version import RELEASE

MOST_NOTICES = 10
"""Nodes that could not join of which a round's row says why."""

log = logging.getLogger("fedprune")

_ALL = -1
"""No node's number."""

_WHY = "not started, no network, or refused for its key or its clock: its own log says which"


@dataclass
class News:
    """What was not told yet, and of whom what was said already.

    Names and addresses by node, where Flower knows them, are kept for who has left; it began at so
    many seconds since 1970.
    """

    names: dict[int, str] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    _said: set[tuple[int, str]] = field(default_factory=set)
    _failures: list[Failure] = field(default_factory=list)
    _notices: list[str] = field(default_factory=list)

    def there(self, grid: Grid) -> set[int]:
        """Who is there now."""
        if not hasattr(grid, "get_nodes"):
            return set(patiently(grid.get_node_ids))
        nodes = patiently(lambda: list(grid.get_nodes()))
        about = {n.node_id: [plain(text) for text in (n.name, n.location) if text] for n in nodes}
        self.names |= {i: " at ".join(told) for i, told in about.items() if told}
        return set(about)

    def name(self, i: int) -> str:
        """A node by Flower's number of it, and by name and address where Flower knows them."""
        said = self.names.get(i)
        return f"node {i} ({said})" if said else f"node {i}"

    def named(self, failure: Failure, node: int | None) -> Failure:
        """A failure with the node's name, where Flower knows more than its number."""
        if node not in self.names:
            return failure
        return replace(failure, reason=f"{failure.reason} ({self.name(node)})")

    def _first(self, i: int, field_: str) -> bool:
        """Whether nothing was said yet of this field of a node."""
        known = (i, field_) in self._said
        self._said.add((i, field_))
        return not known

    def notice(self, i: int, field_: str, text: str) -> None:
        """Tell something of a node's field, unless something of it was told before."""
        if self._first(i, field_):
            self._notices.append(text)
            log.warning("%s", text)

    def of_node(self, i: int, node: Announced) -> None:
        """Tell that a node has another version of fedprune, which speaks the same protocol.

        And that it was refused for its clock, if that was since this run began.
        """
        if node.version != RELEASE:
            what = f"{self.name(i)} has fedprune {node.version}, the server {RELEASE}"
            self.notice(i, "version", f"{what}: they go on together, results may differ")
        if node.clock is not None and node.clock[1] >= self.began:
            off = clock_off(node.clock[0])
            self.notice(i, "clock", f"{self.name(i)} was refused until now: its clock was {off}")

    def missing(self, grid: Grid, clients: int, nodes: Collection[Announced]) -> None:
        """Tell, once, of which partitions nothing was heard on a network."""
        heard = {p for node in nodes for p in node.labels}
        heard |= {node.failure.partition for node in nodes if node.failure}
        gone = [p for p in range(clients) if p not in heard]
        if gone and networked(grid):
            self.notice(_ALL, "missing", f"nothing is heard of client {_few(gone)}: {_WHY}")

    def failed(self, i: int, failure: Failure) -> None:
        """Tell that a node's partition cannot take part, unless that was told before."""
        if self._first(i, failure.field):
            self._failures.append(replace(failure, reason=f"{failure.reason} ({self.name(i)})"))
            log.warning("partition %d could not join: %s", failure.partition, failure.reason)

    def take(self) -> tuple[tuple[Failure, ...], tuple[str, ...]]:
        """What was not told yet: who could not join, and notices of other nodes."""
        failures, said = tuple(self._failures), self._notices
        more = len(said) - MOST_NOTICES
        said = said[:MOST_NOTICES] + ([f"{more} more nodes could not join"] if more > 0 else [])
        self._failures, self._notices = [], []
        return failures, tuple(said)


def _few(partitions: Sequence[int]) -> str:
    more = len(partitions) - MOST_NOTICES
    told = ", ".join(map(str, partitions[:MOST_NOTICES]))
    return f"{told} and {more} more" if more > 0 else told
