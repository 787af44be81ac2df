"""Clients that prune by their own scores and train under masks of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

from fedprune.learning.mask_rules import decided
from fedprune.methods.method import Method
from fedprune.methods.scored import best
from fedprune.methods.tuning import tuned
from fedprune.protocol.aggregate import Aggregate
from fedprune.server.diagnostics import Notes, agreement_of
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model


def _about(r: Round) -> dict[str, Any]:
    """What a question to tune says, where a pruning is due: each prunes before it trains."""
    if not r.due:
        return {}
    own = {"score": r.config.score, "sparsity": r.plan.sparsity(r.number)}
    return {**own, "progress": r.plan.progress(r.number)}


def under_one_mask(model: Model, memory: Any, r: Round, changes: Aggregate) -> Talk[Step]:
    """The model under one mask again, after the clients trained under masks of their own."""
    yield from ()
    if changes.votes is None:
        return Step(model, memory)
    sparsity, weights = r.plan.sparsity(r.number), {n: model.weights[n] for n in model.masks}
    rule = partial(best, sparsity=sparsity, model=model, r=r)
    masks = decided(r.config.masks, changes.votes, weights, model.masks, rule)
    return Step(model.under(masks), memory, Notes(agreement=agreement_of(changes)))


METHOD = Method(
    "each client prunes by its own scores and trains; the masks are merged (--masks)",
    "FedDST, Bibikar et al. 2022, arXiv 2112.09824; FedSpaLLM, Bai et al. 2025, arXiv 2410.14852",
    tune=tuned(_about),
    after=under_one_mask,
)
