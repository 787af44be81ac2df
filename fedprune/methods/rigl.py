"""RigL: from a random sparse mask on, the smallest weights go and those with large gradients come.

Evci et al. 2020, arXiv 1911.11134, algorithm 1, in a federation. Training begins under a random
mask, at layer densities by Erdős-Rényi-Kernel (``--scope``). In every further pruning round of
every layer the part f of its weights with the smallest |w| go,

    f = alpha/2 · (1 + cos(t pi / T)),   alpha = ``--regrow``,

and as many removed ones with the largest |Σ_k gradient_k| come, from 0, the clients' gradients
summed. It is ``--schedule regrow`` (`fedprune.methods.regrow`) with the paper's choices, and goes
with whatever that goes with.

Where it departs from the paper: what a step drops it does not grow again; the gradient is that of
the cohort's whole shards, not of a mini-batch; the first layer is sparse too, the output layer is
not. ``start largest`` begins with the largest weights in place of random ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from fedprune.methods import regrow
from fedprune.methods.growing import random_masks
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model


class Options(Section):
    """What ``--method-options`` takes."""

    start: Literal["random", "largest"] = option("method", "the first mask", "random")


def _moved(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """The first mask by chance; then exchanges."""
    if r.prunings or r.options.start == "largest":
        return (yield from regrow.METHOD.before(model, memory, r))
    sparsity = r.plan.sparsity(r.number) or 0.0
    return Step(model.under(random_masks(model, r, sparsity)), memory)


METHOD = replace(
    regrow.METHOD,
    summary="from a random mask on, the smallest go and those with the largest gradients come",
    source="RigL, Evci et al. 2020, arXiv 1911.11134; gradients summed over clients' shards, what "
    "goes does not come back at once",
    before=_moved,
    options=Options,
    sets={"schedule": "regrow", "score": "magnitude"},
    usual={"scope": "erk", "warmup": 0},
)
