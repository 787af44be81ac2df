"""How many workers a machine gets."""

from __future__ import annotations

import math

import pytest

from fedprune.client.footprint import Footprint
from fedprune.engines.ray.nodes import Node, nodes_of, workers_that_fit

GIB = 2**30


@pytest.mark.parametrize(
    ("cpus", "cards", "memory", "needs", "gpus", "most", "workers", "share", "why"),
    [
        (2, 0, math.inf, Footprint(), -1, 0, 2, 0, "2 processors"),
        (1, 0, math.inf, Footprint(), -1, 0, 1, 0, "1 processor"),
        (64, 0, 20 * GIB, Footprint(memory=4 * GIB), -1, 0, 4, 0, "16.0 GiB of memory, 4.0"),
        (64, 0, 2 * GIB, Footprint(memory=4 * GIB), -1, 0, 1, 0, "1.6 GiB of memory, 4.0"),
        (4, 0, 900 * GIB, Footprint(memory=4 * GIB), -1, 0, 4, 0, "4 processors"),
        # 64 processors and one card: as many as fit on the card
        (64, 1, math.inf, Footprint(card=20 * GIB, card_room=78 * GIB), -1, 0, 3, 1 / 3, "1 of"),
        (64, 4, math.inf, Footprint(card=20 * GIB, card_room=78 * GIB), -1, 0, 12, 1 / 3, "4 of"),
        (64, 1, math.inf, Footprint(card=90 * GIB, card_room=78 * GIB), -1, 0, 1, 1, "1 of"),
        (2, 4, math.inf, Footprint(card=GIB, card_room=78 * GIB), -1, 0, 2, 1, "2 processors"),
        (8, 1, math.inf, Footprint(), -1, 0, 1, 1, "1 of"),
        (8, 1, math.inf, Footprint(), 0.25, 0, 4, 0.25, "1 of"),
        (8, 1, math.inf, Footprint(card=GIB, card_room=2 * GIB), 0, 0, 8, 0, "8 processors"),
        (8, 0, math.inf, Footprint(), -1, 3, 3, 0, "as asked"),
    ],
)
def test_as_many_workers_as_fit(cpus, cards, memory, needs, gpus, most, workers, share, why):
    found = workers_that_fit(Node("id", "10.0.0.1", cpus, cards, memory), needs, gpus, most)
    assert (found.workers, found.gpus) == (workers, pytest.approx(share))
    assert found.why.startswith(why)
    assert found.workers * found.gpus <= max(cards, 0) + 1e-9


def test_nodes_are_those_that_live_and_have_a_processor():
    def said(name: str, **has: float) -> dict[str, object]:
        about = {"NodeID": name, "NodeManagerAddress": f"at {name}", "Alive": name != "dead"}
        return {**about, "Resources": has}

    found = nodes_of([said("b", CPU=2, memory=5), said("head", CPU=0), said("dead", CPU=1)])
    assert found == [Node("b", "at b", 2, 0, 5)]
