"""What methods share whose clients train in a way of their own (`fedprune.learning.regime`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedprune.config import RunConfig
from fedprune.learning.regime import Regime
from fedprune.methods.growing import all_kept
from fedprune.methods.method import Refusable, Trained
from fedprune.methods.scored import best
from fedprune.methods.tuning import fedavg, tuning
from fedprune.protocol.aggregate import Aggregate
from fedprune.server.round import Round, Step, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.tensors.named import gathered, scattered


def keeping_all(model: Model) -> Model:
    """The same weights under a mask that keeps all."""
    return replace(model, masks=all_kept(model))


def trained_so(model: Model, r: Round, regime: Regime, *, means: bool = False) -> Talk[Trained]:
    """The cohort trains in a regime, and what it sends is averaged.

    With `means` what a client does not send counts as a weight of 0, and so does what it was sent
    of it; else as a change of 0.
    """
    changes = yield from tuning(model, r, regime=regime)
    if changes.total is None or too_few(changes, r.config):
        return Trained(None, changes)
    complete = _on_all(model, r, changes, regime)
    if not means:
        complete = replace(complete, held=None)
    grown = regime.whole or regime.sends == "complement"
    return Trained(fedavg(keeping_all(model) if grown else model, r, complete), changes)


def _on_all(model: Model, r: Round, changes: Aggregate, regime: Regime) -> Aggregate:
    """The sum of the complement's changes as one of all weights."""
    if regime.sends != "complement":
        return changes
    assert changes.total is not None
    there = {n: ~m for n, m in model.masks.items()}
    return replace(changes, total=gathered(scattered(changes.total, r.layout.shapes, there), {}))


def largest_kept(model: Model, memory: Any, r: Round, sparsity: float | None) -> Step:
    """The model with its largest weights alone, at a sparsity; as it is where none is due yet."""
    if not sparsity:
        return Step(model, memory)
    sizes = {n: model.weights[n].abs() for n in model.masks}
    return Step(model.under(best(sizes, sparsity, model, r, all_kept(model))), memory)


def keep_largest(model: Model, memory: Any, r: Round, _: Any) -> Talk[Step]:
    """After training: the largest of the averaged weights stay, at the round's sparsity."""
    yield from ()
    return largest_kept(model, memory, r, r.plan.sparsity(r.number))


def regime_conflicts(config: RunConfig) -> list[Refusable]:
    """What training of another kind does not go with, whatever kind it is."""
    c, own = config, "clients train in a way of this method's own"
    return [
        ("sparsity", c.sparsity is None, "it has one", "a number"),
        ("dp", c.dp != "none", "what is sent follows from the data", "none"),
        ("scaffold", c.scaffold, own, "false"),
        ("batched", c.batched > 1, own, "1"),
        ("compile", c.compile, own, "false"),
        ("adapters", c.adapters != "none", "weights are trained", "none"),
    ]


def regrowing_conflicts(config: RunConfig) -> list[Refusable]:
    """The same, where removed weights train too, by their size alone."""
    c, back = config, "what was removed trains on"
    return [
        *regime_conflicts(c),
        ("score", "score" in c.given and c.score != "magnitude", "the largest stay", "magnitude"),
        ("unit", c.unit != "weight", "single weights go and come back", "weight"),
        ("robust", c.robust != "none", "clients' changes are of different weights", "none"),
        ("shrink", c.shrink == "every", back, "never, end"),
        ("rewind", c.rewind is not None, back, "leave it out"),
        ("reconstruct", c.reconstruct is not None, back, "leave it out"),
        ("blend", c.blend != "none", "masks change after the average", "none"),
        ("reduce", bool(c.reduce), "what was taken out cannot come back", "leave it out"),
        ("score-steps", c.score_steps != 1, "nothing is asked for scores", "1"),
    ]
