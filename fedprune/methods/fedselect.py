"""FedSelect: every client selects weights of its own, those that its training moves most.

Tamirisa et al. 2024 (CVPR), arXiv 2404.02478, and its code (lapisrocks/fedselect). Client k has
flags m_k of the weights that are its own, none at first, and their values, which it keeps. It is
sent the global weights v and begins with

    w = m_k * own_k + (1 - m_k) * v.

It trains by turns (LocalAlt): a step of its own weights, while the others rest, and a step of the
others. It sends what it made of the others, and the server averages each weight over those whose
own it is not,

    v_j = Σ_k n_k (1 - m_kj) w_kj / Σ_k n_k (1 - m_kj);

where it is everybody's own it stays. Every ``every`` rounds a client's own part grows (GradSelect):
of every tensor's weights that are not its own yet the part ``grows`` with the largest
|w - w at the round's beginning| joins it, up to the part ``limit`` of the tensor. A weight that has
just joined begins with the next global value.

Where it departs from the paper and its code: turns change with every step (there with every pass;
while nothing is its own, all steps are of all); clients are sent all global weights (their own are
not read), for the server keeps no account of whose they are; the limit is met exactly; in the code
the change is that since the part last grew. Biases, norms and what else is not prunable are
common, as in the code. The sparsity is 0: nothing is removed. Clients count alike (``--weighting
equal``).
"""

from __future__ import annotations

from typing import Any

from fedprune.config import RunConfig
from fedprune.learning.regime import Regime
from fedprune.methods.apart import apart_conflicts, unpruned
from fedprune.methods.holders import Sent, over_holders
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.regimes import regime_conflicts
from fedprune.methods.tuning import tuning, void
from fedprune.options.option import Count, option
from fedprune.options.section import Section
from fedprune.protocol.aggregate import Aggregate
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import count_kept


class Options(Section):
    """What ``--method-options`` takes."""

    grows: float = option(
        "method", "part of a tensor's common weights that joins a client's own", 0.25, gt=0, le=1
    )
    limit: float = option(
        "method", "largest part of a tensor that is a client's own", 0.5, gt=0, le=1
    )
    every: Count = option("method", "rounds from one growth to the next", 3)


def _trained(model: Model, _: Any, r: Round) -> Talk[Trained]:
    """The cohort trains; each common weight is averaged over those whose own it is not."""
    o = r.options
    grows = o.grows if r.number % o.every == 0 else 0.0
    changes = yield from tuning(model, r, regime=Regime(personal=_OWN, grows=grows, bound=o.limit))
    if void(changes, r):
        return Trained(None, changes)
    return Trained(over_holders(model, r, [Sent(model, changes, whole=False)]), changes)


def _told(model: Model, memory: Any, _: Round, changes: Aggregate) -> Talk[Step]:
    """How large a part of the weights was the clients' own."""
    yield from ()
    if changes.votes is None:
        return Step(model, memory)
    common = float(changes.votes.sum()) / len(changes.answered) / count_kept(model.masks)
    return Step(model, memory, Notes(method={"own_weights": 1.0 - common}))


def _conflicts(config: RunConfig, _: Options) -> list[Refusable]:
    c, own = config, "clients send on masks of their own"
    return [
        *regime_conflicts(c),
        *apart_conflicts(c),
        *unpruned(c, "nothing is pruned"),
        ("secure", c.secure != "none", own, "none"),
        ("reduce", bool(c.reduce), "clients keep weights of one shape", "leave it out"),
        ("max-norm", c.max_norm is not None, own, "leave it out"),
    ]


_OWN = "selected"

METHOD = Method(
    "clients keep weights of their own, those that their training moves most; the rest is averaged",
    "FedSelect, Tamirisa et al. 2024, arXiv 2404.02478; turns of single steps",
    tune=_trained,
    after=_told,
    options=Options,
    own=lambda model, *_: model,
    regime=Regime(personal=_OWN),
    scores=False,
    conflicts=_conflicts,
    sets={"sparsity": 0.0},
    usual={"weighting": "equal"},
)
