"""Movement pruning: what moved away from 0 while it was trained stays, over all rounds so far.

Sanh, Wolf and Rush 2020, arXiv 2005.07683, section 3, in a federation. With every step a weight's
score grows by what the step would move it away from 0,

    S = - Σ_t w_t · dL/dw_t,

here Σ over rounds of the mean over the labels of a round's clients and steps, which clients send
beside their changes. In pruning rounds the weights with the lowest S go (``--scope global`` is the
paper's global top-v, ``layer`` its local one), along the paper's cubic schedule.

``--score movement`` by itself forgets after every round; this remembers.

Where it departs from the paper: no straight-through mask, so that what was removed gets no score
and stays removed; scores begin at 0 and have the learning rate 1, on which no ranking depends; no
threshold with a penalty (soft movement pruning).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from fedprune.methods.method import Method
from fedprune.methods.scored import best, scored
from fedprune.methods.tuning import TOO_FEW, tuned
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.forms import form_of
from fedprune.server.ask import evidence_of
from fedprune.server.round import Round, Step, Talk
from fedprune.server.spoilt import Spoilt, check_score
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.tensors.named import Tensors, masked


@dataclass(frozen=True)
class Memory:
    """S of every weight so far."""

    moved: Tensors


def _collecting(r: Round) -> dict[str, Any]:
    """What a question to tune says: which statistics to collect."""
    return {"score": r.config.score, "progress": r.plan.progress(r.number)}


def _settled(model: Model, memory: Memory, r: Round, changes: Aggregate) -> Talk[Step]:
    """S with this round's, and where a pruning is due the model without the lowest."""
    yield from ()
    if changes.statistics is None or too_few(changes, r.config):
        return Step(model, memory, undone=TOO_FEW if r.due else "")
    form = form_of(r.question(model, "tune", score=r.config.score), r.config, r.layout)
    sums, count = form.named_sums(changes.statistics), changes.totals["count"]
    evidence = replace(evidence_of(model, r, ()), sums=sums, count=count)
    try:
        check_score(evidence, Aggregate(), r.config)  # whose they are is not known
    except Spoilt as spoilt:
        return Step(model, memory, undone=f"not pruned: {spoilt}" if r.due else "")
    now = scored(changes, evidence, r.plan)
    moved = {n: memory.moved[n] + s.float() for n, s in now.items()}
    memory = Memory(masked(moved, model.masks))
    if not r.due:
        return Step(model, memory)
    scores = {n: s.double() for n, s in memory.moved.items()}
    masks = best(scores, r.plan.sparsity(r.number), model, r)
    return Step(model.under(masks), Memory(masked(memory.moved, masks)))


METHOD = Method(
    "one mask for all; what moved away from 0 in all rounds so far stays",
    "movement pruning, Sanh et al. 2020, arXiv 2005.07683, with sums over clients and rounds, "
    "without the straight-through mask",
    tune=tuned(_collecting),
    after=_settled,
    memory=Memory,
    init=lambda model, _: Memory({n: torch.zeros(m.shape) for n, m in model.masks.items()}),
    conflicts=lambda c, _: [
        ("sparsity", c.sparsity is None, "so many of the lowest go", "a number")
    ],
    sets={"score": "movement", "score_during": "tune"},
    usual={"schedule": "cubic"},
)
