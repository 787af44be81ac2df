"""Which machines a Ray has, and how many workers fit on each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fedprune.client.footprint import Footprint
from fedprune.options.refusal import counted

SPARED = 0.8
"""Of a machine's free memory, and of a card's, what workers may be planned to take."""


class Unserved(RuntimeError):
    """No node was there for as long as the run may wait for one."""


@dataclass(frozen=True)
class Node:
    """A machine of a Ray: Ray's id, its address, processors and cards that it offers.

    And bytes of memory; infinite where it does not say.
    """

    id: str
    name: str
    cpus: int
    gpus: float
    memory: float


def nodes_of(found: list[dict[str, Any]]) -> list[Node]:
    """The living machines with a processor, of what ``ray.nodes()`` gives, by Ray's id."""
    nodes = []
    for each in found:
        has = each["Resources"]
        if each["Alive"] and has.get("CPU", 0) >= 1:
            numbers = (
                int(has["CPU"]),
                float(has.get("GPU", 0)),
                float(has.get("memory", math.inf)),
            )
            nodes.append(Node(each["NodeID"], each["NodeManagerAddress"], *numbers))
    return sorted(nodes, key=lambda node: node.id)


@dataclass(frozen=True)
class NodeWorkers:
    """The workers of a machine, the share of a card that each gets, and why they are not more."""

    workers: int
    gpus: float
    why: str


def workers_that_fit(node: Node, needs: Footprint, gpus: float = -1, most: int = 0) -> NodeWorkers:
    """As many workers as fit on a machine, one at least.

    Each gets a share of a card, `gpus`; -1: as many share one as fit. At `most` so many were asked
    for; 0: no number.
    """
    bounds = {node.cpus: counted(node.cpus, "processor")}
    room = node.memory * SPARED
    if needs.memory and math.isfinite(room):
        fit = max(1, int(room // needs.memory))
        bounds.setdefault(fit, f"{_gib(room)} of memory, {_gib(needs.memory)} each")
    share = gpus
    if node.gpus and gpus:
        each = max(1, int(SPARED * needs.card_room // needs.card)) if needs.card else 1
        each = each if gpus < 0 else max(1, int(1 / gpus))
        cards = f"{node.gpus:g} of CUDA's cards, {counted(each, 'worker')} each"
        bounds.setdefault(int(node.gpus * each), cards)
    if most:
        bounds.setdefault(most, "as asked")
    workers = min(bounds)
    if gpus < 0:
        share = min(1.0, node.gpus / workers)
    return NodeWorkers(workers, share, bounds[workers])


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
