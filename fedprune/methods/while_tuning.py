"""One mask for all, by statistics that the clients collect while they train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedprune.methods.global_mask import decide
from fedprune.methods.method import Method
from fedprune.methods.tuning import TOO_FEW, tuned
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.forms import form_of
from fedprune.server.ask import evidence_of
from fedprune.server.round import Round, Step, Talk
from fedprune.server.spoilt import Spoilt, check_score
from fedprune.server.standing import too_few
from fedprune.server.state import Model


def _about(r: Round) -> dict[str, Any]:
    """What a question to tune says, where a pruning is due: which statistics to collect."""
    if not r.due:
        return {}
    return {"score": r.config.score, "progress": r.plan.progress(r.number)}


def collected(model: Model, memory: Any, r: Round, changes: Aggregate) -> Talk[Step]:
    """The model pruned by what the clients collected while they trained."""
    yield from ()
    if not r.due:
        return Step(model, memory)
    form = form_of(r.question(model, "tune", score=r.config.score), r.config, r.layout)
    if changes.statistics is None or too_few(changes, r.config):
        return Step(model, memory, undone=TOO_FEW)
    evidence = replace(
        evidence_of(model, r, ()),
        sums=form.named_sums(changes.statistics),
        count=changes.totals["count"],
    )
    try:
        check_score(evidence, Aggregate(), r.config)  # whose they are is not known
    except Spoilt as spoilt:
        return Step(model, memory, undone=f"not pruned: {spoilt}")
    return Step(decide(model, r, changes, evidence, r.plan.sparsity(r.number))(), memory)


METHOD = Method(
    "one mask for all, by statistics that clients collect while they train (--score-during tune)",
    "movement pruning, Sanh et al. 2020, arXiv 2005.07683, with sums over clients",
    tune=tuned(_about),
    after=collected,
)
