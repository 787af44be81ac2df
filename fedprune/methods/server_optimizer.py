"""What the server makes of the cohort's mean change by momentum or FedOpt: --server-optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fedprune.learning.server_steps import (
    SERVER_OPTIMIZERS,
    ServerMoments,
    ServerRates,
    server_step,
)
from fedprune.methods.method import Rider
from fedprune.methods.tuning import with_moved
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model


@dataclass(frozen=True)
class Memory:
    """The moments of the mean changes so far."""

    moments: ServerMoments = field(default_factory=ServerMoments)


def stepped(before: Model, after: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The model after the rule's step in place of the whole mean change.

    Running statistics take their whole mean change, whatever ``--server-lr`` is.
    """
    yield from ()
    c, statistics = r.config, r.layout.statistics
    old, new = before.adapters or before.weights, after.adapters or after.weights
    moving = [n for n in new if n not in statistics]
    change = {n: new[n].double() - old[n].double() for n in moving}
    rates = ServerRates(
        c.server_lr, c.server_momentum or 0.0, c.server_decay or 0.0, c.server_floor or 0.0
    )
    masks = {} if before.adapters else after.masks
    rule = SERVER_OPTIMIZERS[c.server_optimizer]
    steps, moments = server_step(rule, memory.moments, change, masks, rates)
    moved = {n: (old[n].double() + steps[n]).float() if n in steps else t for n, t in new.items()}
    after = with_moved(after, r, moved) if after.adapters else replace(after, weights=moved)
    return Step(after, Memory(moments))


RIDER = Rider(
    "the mean change is applied by momentum or FedOpt (--server-optimizer)",
    wanted=lambda c: c.server_optimizer != "sgd",
    memory=Memory,
    averaged=stepped,
)
