"""ZeroFL: clients train with sparse weights and inputs, and send a part of what they trained.

Qiu et al. 2022, ICLR, arXiv 2208.02507; **its text was not read**: a summary names the three ways
to send, the rest is from memory of it. The global model is dense. A client takes each
step by SWAT (Raihan and Aamodt 2020): the forward pass and the gradient of the inputs by the
largest 1 - sp of every tensor's weights, the gradient of the weights by the largest 1 - sp of a
layer's inputs; all weights take the step. Of what it trained, w_E, a client sends a part 1 - sp + r
(``ratio``) of all weights:

    weights       the largest weights w_E;            w = Σ n_k/n · w_k, 0 where not sent
    diff-weights  d = w_E - w of the largest weights; w = w + Σ n_k/n · d_k
    diff          the largest d;                      w = w + Σ n_k/n · d_k

sp is ``--sparsity``. The dense weights are the method's memory; the run's model, which is measured
and is the result, is their largest 1 - sp of every tensor, with which clients have trained.

Where it departs from the paper: which weights are sent is decided within tensors too (the paper
does not say); weights of the output layer and what is not prunable are dense and always sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from fedprune.config import RunConfig
from fedprune.learning.regime import Regime
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.regimes import keeping_all, largest_kept, regrowing_conflicts, trained_so
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import Tensors

_SENDS = {"weights": "weights", "diff-weights": "weights", "diff": "changes"}


class Options(Section):
    """What ``--method-options`` takes."""

    send: Literal["weights", "diff-weights", "diff"] = option(
        "method", "what clients send: largest weights, their changes, or largest changes", "diff"
    )
    ratio: float = option(
        "method", "part of all weights that is sent beyond the density (r_mask)", 0.1, ge=0, le=1
    )


@dataclass(frozen=True)
class Memory:
    """The dense weights."""

    dense: Tensors


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """The cohort trains the dense model by sparse passes; the mean of what it sends."""
    sparsity, sends = r.config.sparsity or 0.0, r.options.send
    share = min(1.0, 1.0 - sparsity + r.options.ratio)
    regime = Regime(forward=sparsity, inputs=sparsity, sends=_SENDS[sends], share=share)
    dense = replace(keeping_all(model), weights=memory.dense)
    return (yield from trained_so(dense, r, regime, means=sends == "weights"))


def _shown(model: Model, _: Memory, r: Round, __: Any) -> Talk[Step]:
    """The largest weights of the dense model that training gave."""
    yield from ()
    return largest_kept(model, Memory(model.weights), r, r.plan.sparsity(r.number))


def _conflicts(config: RunConfig, _: Options) -> list[Refusable]:
    c, dense = config, "the mean change is of the dense weights"
    return [
        *regrowing_conflicts(c),
        ("server-optimizer", c.server_optimizer != "sgd", dense, "sgd"),
        ("secure", c.secure != "none", "clients send on masks of their own", "none"),
    ]


METHOD = Method(
    "clients train with sparse weights and inputs, and send the largest weights or changes",
    "ZeroFL, Qiu et al. 2022, arXiv 2208.02507, from a summary; measured with its largest weights",
    tune=_trained,
    after=_shown,
    memory=Memory,
    init=lambda model, _: Memory(model.weights),
    options=Options,
    scores=False,
    conflicts=_conflicts,
    sets={"scope": "layer"},
    usual={"score": "magnitude", "schedule": "one-shot", "warmup": 0},
)
