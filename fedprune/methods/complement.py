"""Complement Sparsification: the server sends what it kept, clients send what it removed.

Jiang and Borcea 2023, AAAI, arXiv 2303.06237, and the authors' code (XJ8/complement-sparsification-
FL). After a first round of plain training the server keeps the largest weights; in every further
round clients are sent these, train all weights, and send the removed ones alone. With M the mask
and η the server's rate,

    w = M·w + η·(1 - M)·Σ n_k/n · w_k,

of which the largest stay again. So weights come and go, and neither way carries all. Clients
know the mask, so that no positions travel back.

Where it departs from the authors' code: η multiplies the first round's mean change too (there that
round is a plain average), and that of biases in every round (there biases are plain averages); the
sparsity is that of ``--schedule``, at once by default; which weights compete is ``--scope``, by
default all of them (there those of a layer); masks are exact, without TensorFlow's pruning.
"""

from __future__ import annotations

from typing import Any

from fedprune.config import RunConfig
from fedprune.learning.regime import PLAIN_REGIME, Regime
from fedprune.methods.method import Method, NoOptions, Refusable, Trained
from fedprune.methods.regimes import keep_largest, regrowing_conflicts, trained_so
from fedprune.server.round import Round, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import cuts


def _trained(model: Model, _: Any, r: Round) -> Talk[Trained]:
    """The cohort trains all weights; what was removed comes back from it."""
    regime = Regime(whole=True, sends="complement") if cuts(model.masks) else PLAIN_REGIME
    return (yield from trained_so(model, r, regime))


def _conflicts(config: RunConfig, _: NoOptions) -> list[Refusable]:
    other = "what is sent is of another mask in every round"
    return [
        *regrowing_conflicts(config),
        ("error-feedback", config.error_feedback, other, "false"),
    ]


METHOD = Method(
    "the server sends the largest weights, clients train all and send the others",
    "Complement Sparsification, Jiang and Borcea 2023, arXiv 2303.06237",
    tune=_trained,
    after=keep_largest,
    scores=False,
    conflicts=_conflicts,
    usual={"score": "magnitude", "schedule": "one-shot", "warmup": 0, "server_lr": 1.5},
)
