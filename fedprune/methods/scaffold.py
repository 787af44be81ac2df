"""SCAFFOLD's half of the server: the common control variate, which goes along with the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedprune.config.rates import learning_rate
from fedprune.learning.variates import common_variate, parameters_in
from fedprune.methods.method import Rider
from fedprune.protocol.aggregate import Aggregate
from fedprune.server.round import Round
from fedprune.server.state import Model
from fedprune.tensors.named import Tensors, scattered


@dataclass(frozen=True)
class Memory:
    """The common variate; empty before the first round that counts."""

    common: Tensors = field(default_factory=dict)


def _summed(model: Model, memory: Memory, r: Round, changes: Aggregate) -> Memory:
    """The common variate with the cohort's changes, of the model that it was sent."""
    c = r.config
    assert changes.total is not None  # else the round is void
    mean = scattered(changes.total / changes.weight, r.layout.shapes, model.masks)
    span = c.local_steps * learning_rate(c, r.number)
    moved = parameters_in(mean, r.layout.statistics)
    share = len(changes.answered) / c.clients
    return Memory(common_variate(memory.common, moved, model.masks, span, share))


RIDER = Rider(
    "clients' steps are corrected by control variates (--scaffold)",
    wanted=lambda c: c.scaffold,
    memory=Memory,
    along=lambda memory, _: {"given": memory.common} if memory.common else {},
    summed=_summed,
)
