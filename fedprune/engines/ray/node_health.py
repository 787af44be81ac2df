"""What the deaths of workers tell of their nodes: which cannot take part, which should rest."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import ray

from fedprune.engines.ray.nodes import Node
from fedprune.engines.ray.worker import kills_for_memory

STARTS = 3
"""Workers in a row that may die before they are ready on a node that never had one; then it is
left alone. One that had is given rests, as its memory may be slow to come back."""

LONGEST_REST = 60.0
"""Seconds that a node rests at most after workers died as they started."""

_LOW = ("low on memory", "due to OOM")
"""What Ray says of a worker that it killed because its node ran out of memory."""

_MEMORY_AT_START = "Ray kills them for want of memory; allowed: fewer --workers, or more memory"


@dataclass(eq=False)
class NodeHealth:
    """What is known of the nodes by what became of their workers.

    `refused` says why they cannot take part; `here` is this machine's address.
    """

    refused: dict[str, str] = field(default_factory=dict)
    here: str = field(default_factory=ray.util.get_node_ip_address)
    _deaths: Counter[str] = field(default_factory=Counter)
    _served: set[str] = field(default_factory=set)
    _resting: dict[str, float] = field(default_factory=dict)
    _kills: dict[str, int] = field(default_factory=dict)

    def takes(self, node: Node) -> bool:
        """Whether a worker may be started there now."""
        return node.id not in self.refused and self._resting.get(node.id, 0.0) <= time.monotonic()

    def served(self, node: Node) -> None:
        """A worker there has begun."""
        self._deaths[node.id] = 0
        self._served.add(node.id)

    def died_at_start(self, node: Node, error: str) -> str:
        """A worker died before it had begun: let its node rest.

        Returns:
            Why the node should be left alone; "" if it should not.
        """
        self._deaths[node.id] += "no longer" not in error and "unschedulable" not in error
        deaths = self._deaths[node.id]
        self._resting[node.id] = time.monotonic() + min(LONGEST_REST, 2.0**deaths - 1)
        if node.id in self._served or deaths < STARTS:
            return ""
        return _MEMORY_AT_START if of_memory(error) else " ".join(error.split())[-300:]

    def killed_since(self, node: Node, kills: int) -> bool:
        """Whether so many kills for want of memory are more than the node had when last asked."""
        before, self._kills[node.id] = self._kills.get(node.id, kills), kills
        return kills > before

    def killed_here(self, node: Node) -> bool:
        """`killed_since`, by this machine's kernel itself; False of other nodes."""
        if node.name != self.here:
            return False
        self._kills.setdefault(node.id, 0)
        return self.killed_since(node, kills_for_memory())


def of_memory(error: str) -> bool:
    """Whether Ray says that it killed a worker for want of memory."""
    return any(text in error for text in _LOW)
