"""SpaFL: clients keep their weights; thresholds that prune neurons and filters travel alone.

Kim et al. 2024 (NeurIPS), arXiv 2406.00431, and its code (news-vt/SpaFL_NeruIPS_2024, fmnist).
Every row i of a layer (the weights of a neuron or filter) has a threshold τ_i, 0 at first; client k
computes with the rows whose mean |w| is above it. All begin with the same weights. In a round the
client sets τ to the server's, moves its weights by what the server's thresholds did last,

    w_ij = w_ij - (τ_i^t - τ_i^{t-1}) · sign(Σ_j w_ij) / n       (n: inputs; of filters the kernel),

and trains w and τ together (`fedprune.learning.thresholds`) on its loss + λ_t Σ_i exp(-τ_i), with
λ_t = penalty / (1 + exp(5 - 10 t / ramp)), t from 0. It sends its τ; the server takes the mean. A
layer of which less than a hundredth is kept begins with τ = 0 again.

**Weights stay with their clients.** The first are those that the seed makes, so that they are not
sent either (``--base held``). What is measured, in every round, is each client's own model on its
own part; the run's global model, which is saved, is the one before round one: nobody's. How much
clients keep is in the rows (``density``); the global model's sparsity is 0.

Where it departs from the paper and its code: thresholds take plain SGD at the rate of the weights,
with ``--momentum`` where these take SGD, which begins anew in every round (there one optimizer for
all); ``--clip`` is of the weights alone; the head of output has no thresholds, as it is not
prunable; biases are trained, and their neurons with them (the paper's layers have none); density is
by weights (there the mean over layers). Clients count alike (``--weighting equal``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import Any

import torch

from fedprune.client.thresholds import LAST_STEP, THRESHOLD
from fedprune.config import RunConfig
from fedprune.learning.regime import Regime
from fedprune.methods.apart import apart_conflicts, unpruned
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.regimes import regime_conflicts
from fedprune.methods.tuning import tuning
from fedprune.options.option import Count, option
from fedprune.options.section import Section
from fedprune.protocol.aggregate import Aggregate
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.structure.layout import as_rows
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Tensors, scattered


class Options(Section):
    """What ``--method-options`` takes."""

    penalty: float = option(
        "method", "factor of the sum of exp(-threshold) in what clients minimise", 0.002, ge=0
    )
    ramp: Count = option("method", "rounds in which the penalty grows to its factor", 1)


@dataclass(frozen=True)
class Memory:
    """The thresholds of every prunable tensor's rows, and how they moved last."""

    thresholds: Tensors
    moved: Tensors


def _init(model: Model, r: Round) -> Memory:
    """Thresholds of 0, which keep all rows that are not 0."""
    rows = {n: as_rows(r.layout, n, model.weights[n]).shape[0] for n in r.layout.prunable}
    return Memory(*({n: torch.zeros(many) for n, many in rows.items()} for _ in range(2)))


def penalty_in(options: Any, number: int) -> float:
    """λ in a round, which is counted from 1."""
    return float(options.penalty / (1.0 + exp(5.0 - 10.0 * (number - 1) / options.ramp)))


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """The cohort trains weights that it keeps; the mean of its thresholds."""
    given = {f"{n}{THRESHOLD}": t for n, t in memory.thresholds.items()}
    given |= {f"{n}{LAST_STEP}": t for n, t in memory.moved.items()}
    regime = Regime(personal=_ALONE, penalty=penalty_in(r.options, r.number))
    changes = yield from tuning(model, r, given=given, regime=regime)
    if changes.total is None or too_few(changes, r.config):
        return Trained(None, changes)
    mean = changes.total / changes.weight * r.config.server_lr
    moved = {n: t.float() for n, t in scattered(mean, shapes_of(memory.thresholds), {}).items()}
    thresholds = {n: t + moved[n] for n, t in memory.thresholds.items()}
    return Trained(model, changes, Memory(thresholds, moved))


def _told(model: Model, memory: Memory, r: Round, changes: Aggregate) -> Talk[Step]:
    """How much of their models clients keep, and the mean of the thresholds."""
    yield from ()
    kept = changes.totals["kept"] / len(changes.answered) / r.layout.whole
    mean = float(torch.cat(list(memory.thresholds.values())).mean())
    return Step(model, memory, Notes(method={"density": kept, "threshold": mean}))


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    c, own, alone = config, "weights stay with their clients", "thresholds alone travel"
    idle = "ramp" in c.method_options and options.penalty == 0
    return [
        ("method-options", idle, "a penalty of 0 does not grow", "leave ramp out"),
        *regime_conflicts(c),
        *apart_conflicts(c),
        *unpruned(c, "thresholds alone prune"),
        ("secure", c.secure != "none", "secure sums send all weights", "none"),
        ("init", bool(c.init), "clients begin with the weights that the seed makes", "none"),
        ("server-optimizer", c.server_optimizer != "sgd", alone, "sgd"),
        ("moving", c.moving != "none", own, "none"),
        ("max-norm", c.max_norm is not None, alone, "leave it out"),
        ("reduce", bool(c.reduce), own, "leave it out"),
    ]


_ALONE = "thresholds"

METHOD = Method(
    "clients keep their weights; thresholds that prune their neurons and filters are averaged",
    "SpaFL, Kim et al. 2024, arXiv 2406.00431; measured are the clients' own models",
    tune=_trained,
    after=_told,
    memory=Memory,
    init=_init,
    options=Options,
    regime=Regime(personal=_ALONE),
    scores=False,
    conflicts=_conflicts,
    sets={"sparsity": 0.0, "base": "held"},
    usual={"weighting": "equal", "optimizer": "sgd"},
)
