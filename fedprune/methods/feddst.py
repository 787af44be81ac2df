"""FedDST: clients prune and grow as they train; what they end with is averaged and pruned again.

Bibikar et al. 2022, arXiv 2112.09824, algorithm 1, and its code (bibikar/feddst). Training begins
with the largest weights of every layer, at layer densities by Erdős-Rényi-Kernel. Every so many
rounds (``--frequency``) clients readjust: a client trains for a part of its steps, then of every
layer the part alpha_r of the kept weights with the smallest |w| go, and as many of the removed ones
with the largest |gradient| come, from 0; it trains on and sends weights and mask. The server takes
the mean over those who kept a weight,

    w = Σ_k n_k m_k w_k / Σ_k n_k m_k,

removes what fewer than so many clients kept, and prunes the union of the masks by |w|, layer by
layer, to the sparsity. alpha_r falls with the cosine of `fedprune.selection.schedules`, from
``--regrow`` to 0 at ``--end``.

Where it departs from the paper and its code: a weight that goes does not come back in the same
exchange, and none that is kept is ever set to 0 by growing (the code draws among all weights);
gradients are of the client's whole shard, in eval mode; the optimizer begins anew after the
exchange; a vote is a client's, not its number of examples; clients are weighted by labels.
"""

from __future__ import annotations

from typing import Any

from fedprune.config import RunConfig
from fedprune.methods.global_mask import sparsity_of, thin
from fedprune.methods.growing import (
    exchanging_ask,
    exchanging_conflicts,
    fraction_in,
    over_exchanged,
)
from fedprune.methods.holders import Sent
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.tuning import void, with_mean
from fedprune.options.option import Count, option
from fedprune.options.section import Section
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.choice import Wanted, chosen
from fedprune.server.diagnostics import Notes, agreement_of
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model


class Options(Section):
    """What ``--method-options`` takes."""

    turn: float = option("method", "part of a client's steps before it exchanges", 0.5, ge=0, le=1)
    votes: Count = option("method", "fewest clients that keep a weight which stays", 1)


def _begun(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """The first mask; from then on masks change after training."""
    if r.prunings:
        return Step(model, memory)
    return (yield from thin(model, memory, r))


def _trained(model: Model, _: Any, r: Round) -> Talk[Trained]:
    """The mean over holders where clients exchange weights, else that over all."""
    fraction = fraction_in(r)
    if not fraction:
        return (yield from with_mean(model, r))
    (changes,) = yield [exchanging_ask(model, r, r.cohort, exchange=fraction, turn=r.options.turn)]
    if void(changes, r):
        return Trained(None, changes)
    return Trained(over_exchanged(model, r, [Sent(model, changes)], r.options.votes), changes)


def _pruned_again(model: Model, memory: Any, r: Round, changes: Aggregate) -> Talk[Step]:
    """The union of the clients' masks, pruned by size to the sparsity."""
    yield from ()
    if changes.votes is None:
        return Step(model, memory)
    c, sparsity = r.config, r.plan.sparsity(r.number) or 0.0
    weights = {n: model.weights[n] for n in model.masks}
    masks = model.masks
    if sparsity_of(masks, r.layout) < sparsity:
        sizes = {n: w.abs() for n, w in weights.items()}
        masks = chosen(sizes, Wanted(sparsity, c.scope), c, r.layout, masks, weights)
    return Step(model.under(masks), memory, Notes(agreement=agreement_of(changes)))


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    many = options.votes > config.cohort
    allowed = f"votes 1 to {config.cohort}"
    more = ("method-options", many, "more votes than a cohort has", allowed)
    return [*exchanging_conflicts(config), more]


METHOD = Method(
    "clients prune and grow as they train; means over holders, and the union is pruned again",
    "FedDST, Bibikar et al. 2022, arXiv 2112.09824; gradients of whole shards, what goes does not "
    "come back at once",
    tune=_trained,
    before=_begun,
    after=_pruned_again,
    options=Options,
    scores=False,
    conflicts=_conflicts,
    sets={"schedule": "regrow", "score": "magnitude"},
    usual={"scope": "erk", "warmup": 0},
)
