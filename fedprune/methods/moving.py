"""A running average of the rounds' weights: what is measured and kept, while training goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedprune.learning.moving_average import Moving, moved
from fedprune.methods.method import Rider
from fedprune.server.round import Round
from fedprune.server.state import Model


@dataclass(frozen=True)
class Memory:
    """The average; None before its first round."""

    moving: Moving | None = None


def followed(model: Model, memory: Memory, r: Round) -> tuple[Model, Memory]:
    """The round in the running average.

    A mean of the rounds from the last pruning on begins with the round in which that happened.
    """
    c = r.config
    swa = c.moving == "swa"
    if swa and (r.number < c.end or r.pending):
        return model, memory
    before = None if swa and r.pruned else memory.moving
    return model, Memory(moved(before, model.weights, model.masks, r.layout, c.moving_decay))


def _outcome(model: Model, memory: Memory) -> Model:
    """The model with the averaged weights, where there is an average."""
    return model if memory.moving is None else replace(model, weights=memory.moving.weights)


RIDER = Rider(
    "a running average of the rounds' weights is the result (--moving)",
    wanted=lambda c: c.moving != "none",
    memory=Memory,
    closing=followed,
    outcome=_outcome,
)
