"""Shrinking in every round: what a mask has emptied is cut out (``--shrink every``)."""

from __future__ import annotations

from typing import Any

from fedprune.methods.method import Rider
from fedprune.server.round import Round, Step, Talk
from fedprune.server.shrink import shrunk
from fedprune.server.state import Model


def _pruned(_: Model, model: Model, memory: Any, r: Round) -> Talk[Step]:
    yield from ()
    return Step(shrunk(model, r.plan)[0], memory)


RIDER = Rider(
    "units that a mask has emptied are cut out of the model (--shrink every)",
    wanted=lambda c: c.shrink == "every",
    pruned=_pruned,
    closing=lambda model, memory, r: (shrunk(model, r.plan)[0], memory),
)
