"""SparsyFed: weights under powerpropagation, inputs as sparse as weights, pruned before they go.

Guastella et al. 2025, ICLR, arXiv 2504.05153. A client is sent the sparse model. It trains θ in
w = sign(θ)|θ|^a (Schwarz et al. 2021), so that large weights move more and weights that are 0 stay
0, and takes the gradient of a layer's weights by the largest of its inputs, so large a part as its
weights are dense. Then it keeps the largest of its weights, so many as the sparsity allows, and
sends these with their mask. The server averages: w = Σ n_k/n · w_k.

Where it departs from the paper (and from a copy of its code, DieRoche/sparsyfed_copy; the authors'
own could not be read): weights w travel and are averaged, θ is the client's own, so that the model
is a plain one (their code averages θ); the average, whose mask is the union of the clients', is cut
to the sparsity again; the sparsity is that of ``--schedule``, at once by default; which weights
compete is ``--scope``. As a client is sent no more weights than it may keep, and with a > 1 a
weight of 0 has no gradient, **the mask stays as it is once the sparsity is reached** (but for
``--error-feedback``); the paper says that masks adapt.
"""

from __future__ import annotations

from typing import Any

from fedprune.config import RunConfig
from fedprune.learning.regime import AS_WEIGHTS, Regime
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.regimes import keep_largest, regrowing_conflicts, trained_so
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.server.round import Round, Talk
from fedprune.server.state import Model


class Options(Section):
    """What ``--method-options`` takes."""

    power: float = option("method", "exponent of the weights (alpha)", 1.25, ge=1, le=10)


def _trained(model: Model, _: Any, r: Round) -> Talk[Trained]:
    """The cohort trains and prunes; the mean of its weights."""
    share = 1.0 - (r.plan.sparsity(r.number) or 0.0)
    how = {"power": r.options.power, "inputs": AS_WEIGHTS, "whole": True, "sends": "weights"}
    return (yield from trained_so(model, r, Regime(**how, share=share), means=True))


def _conflicts(config: RunConfig, _: Options) -> list[Refusable]:
    c, own = config, "clients send on masks of their own"
    return [*regrowing_conflicts(c), ("secure", c.secure != "none", own, "none")]


METHOD = Method(
    "clients train powers of weights on sparse inputs, prune by size, and send what is left",
    "SparsyFed, Guastella et al. 2025, arXiv 2504.05153; weights are averaged, not their roots",
    tune=_trained,
    after=keep_largest,
    options=Options,
    scores=False,
    conflicts=_conflicts,
    usual={"score": "magnitude", "schedule": "one-shot", "warmup": 0},
)
