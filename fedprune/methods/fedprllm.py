"""FedPrLLM: every client prunes a copy by Wanda; the masks are counted, and most votes decide.

Guo et al. 2025, arXiv 2505.13547, and its code (Pengxin-Guo/FedPrLLM). Client k of m walks through
its copy of the model block by block, behind what it pruned itself, and removes of every row
(``--vote-scope``) the weights with the least |w|·‖x‖; M_k = 1 where it removes one. The server adds
the masks up, and of every comparison group (``--scope``: layer, row, column, global) as many
weights go as are wanted, those with the most votes:

    M_hat = Σ_k M_k,   W_hat = W * (1 - top(M_hat)),   scaled: W_hat * (m - M_hat) / m.

``--calibration local`` is the paper's one-shot pruning, ``sequential`` its iterative one: a block
is pruned globally before clients score the next. The paper finds that ``scaled`` makes models
worse; it is here for comparison.

It is the plain composition (`fedprune.methods.global_mask`) with these choices, but for the
scaling, so that votes go with secure sums and with randomised response as there.

Where it departs from the paper: ties among votes go by magnitude, not by chance or by index; every
client calibrates on all its examples, not on two (``--score-examples``); clients may fine-tune
afterwards (``--local-steps 0``: they do not). Under the group "column" (``--scope column
--vote-scope column``) the paper's models fail.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedprune.config import RunConfig
from fedprune.methods import global_mask
from fedprune.methods.global_mask import thin
from fedprune.methods.method import Refusable
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.protocol.aggregate import Aggregate
from fedprune.scores.score import Evidence
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import scattered


class Options(Section):
    """What ``--method-options`` takes."""

    scaled: bool = option("method", "weights times the part of clients that keep them", False)


def _pruned(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """The plain pruning by votes; what stays is scaled where that is asked for."""
    return (yield from thin(model, memory, r, scaled_by_votes if r.options.scaled else None))


def scaled_by_votes(model: Model, votes: Aggregate, evidence: Evidence) -> Model:
    """The weights asked about times the part of the clients that kept them."""
    assert votes.votes is not None  # it is pruned by them
    share = votes.votes.double() / len(votes.answered)
    parts = scattered(share, shapes_of(evidence.weights), evidence.masks)
    weights = {n: (model.weights[n].double() * p).float() for n, p in parts.items()}
    return replace(model, weights={**model.weights, **weights})


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    told = config.response is not None and options.scaled
    why = "weights are scaled by votes as they are"
    return [("response", told, why, "leave it out, or scaled false")]


METHOD = replace(
    global_mask.METHOD,
    summary="clients prune copies by Wanda, one-shot or block by block; most votes decide",
    source="FedPrLLM, Guo et al. 2025, arXiv 2505.13547; ties go by magnitude",
    before=_pruned,
    options=Options,
    conflicts=_conflicts,
    sets={"score": "wanda", "combine": "votes", "schedule": "one-shot"},
    usual={
        **{"calibration": "local", "vote_scope": "row", "scope": "layer"},
        **{"score_cohort": "all", "sparsity": 0.5},
    },
    untrained=True,
)
