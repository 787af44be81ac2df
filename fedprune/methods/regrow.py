"""Pruning and regrowing at constant sparsity: drop by the score, grow by the pooled gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedprune.methods.global_mask import sparsity_of, thin
from fedprune.methods.growing import grown_in, pooled_gradient
from fedprune.methods.method import Method
from fedprune.methods.scored import combined
from fedprune.methods.tuning import TOO_FEW, tuned
from fedprune.scores.combine import combines_of
from fedprune.selection.regrowth import exchange_weights
from fedprune.selection.schedules import exchange_fraction
from fedprune.server.ask import asked
from fedprune.server.diagnostics import noted
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model


def _exchanged(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """Prune at first; then exchange weights at constant density."""
    if not r.prunings:
        return (yield from thin(model, memory, r))
    c = r.config
    fraction = exchange_fraction(c.regrow or 0.0, *r.plan.exchange_step(r.number))
    aggregate, evidence = yield from asked(model, r, (), _before_growing(model, r, fraction))
    if evidence is None:
        return Step(model, memory, undone=TOO_FEW)
    gradient = yield from pooled_gradient(model, r)
    if gradient is None:
        return Step(model, memory, undone=TOO_FEW)
    masks = exchange_weights(
        model.masks,
        combined(aggregate, evidence, r.plan),
        {n: g.abs() for n, g in gradient.items()},
        fraction,
        scope=c.scope,
        magnitude={n: w.abs() for n, w in evidence.weights.items()},
        floor=c.floor,
    )
    notes = replace(noted(aggregate, evidence, r.plan), exchanged=grown_in(masks, model.masks))
    return Step(model.under(masks), memory, notes)


def _before_growing(model: Model, r: Round, fraction: float) -> float | None:
    """The sparsity between dropping and growing, at which clients vote; None where nobody does."""
    if combines_of(r.config.plugin)[r.config.combine].valued:
        return None
    now = sparsity_of(model.masks, r.layout)
    return now + fraction * (1.0 - now)


METHOD = Method(
    "one mask for all; after the first pruning some weights are exchanged in each further one",
    "RigL, Evci et al. 2020, arXiv 1911.11134; FedTiny, arXiv 2212.01977; with gradients summed "
    "over clients",
    tune=tuned(),
    before=_exchanged,
)
