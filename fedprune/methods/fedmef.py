"""FedMef: weights about to be removed are penalised first, so that the others replace them.

Huang et al. 2024 (CVPR), arXiv 2403.14737. Training begins with a random mask (``--scope``). In the
round before one that prunes, and within its steps, clients minimise in place of their loss

    L(w) + lambda · Σ_{j low} w_j²,

low: of every layer the part of the kept weights with the smallest |w| at the round's beginning that
is to be exchanged next (budget-aware extrusion). Then that part, of the averaged weights the
smallest |w| of every layer, goes, and as many removed ones with the largest |Σ_k gradient_k| come,
from 0. The part falls with the cosine of `fedprune.selection.schedules` (``--regrow``).

Where it departs from the paper, of whose text summaries and the FedPruning library's code were
read: **scaled activation pruning is not here** (convolutions with centred and scaled weights, whose
activations are kept sparse for the backward pass, to save memory): training takes the usual memory.
Clients send all gradients of removed weights (the paper: the largest), of their whole shards.
"""

from __future__ import annotations

from typing import Any

from fedprune.config import RunConfig
from fedprune.methods.growing import exchanged_among, growing_conflicts, random_masks
from fedprune.methods.method import Method, Trained
from fedprune.methods.tuning import fedavg, tuning
from fedprune.options.section import Section, option
from fedprune.selection.schedules import exchange_fraction
from fedprune.server.round import Round, Step, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model


class Options(Section):
    """What ``--method-options`` takes."""

    extrusion: float = option("method", "penalty of weights soon removed (lambda)", 0.1, ge=0)


def _moved(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """The first mask by chance; then every layer exchanges weights."""
    if not r.prunings:
        sparsity = r.plan.sparsity(r.number) or 0.0
        return Step(model.under(random_masks(model, r, sparsity)), memory)
    return (yield from exchanged_among(model, memory, r, r.layout.prunable))


def part_next(r: Round) -> float:
    """The part of the kept weights that is exchanged in the next round; 0.0: none is."""
    if not r.plan.prunes(r.number + 1):
        return 0.0
    step, steps = r.plan.exchange_step(r.number + 1)
    return exchange_fraction(r.config.regrow or 0.0, step, steps) if step > 0 else 0.0


def _trained(model: Model, memory: Any, r: Round) -> Talk[Trained]:
    """The usual mean, of clients that extrude where weights go next."""
    del memory
    part = part_next(r)
    press = {"extrude": r.options.extrusion, "exchange": part} if part else {}
    changes = yield from tuning(model, r, **(press if r.options.extrusion else {}))
    void = changes.total is None or too_few(changes, r.config)
    return Trained(None if void else fedavg(model, r, changes), changes)


def _conflicts(config: RunConfig, options: Options) -> list[tuple[str, str, str]]:
    """What it does not go with."""
    del options
    many = config.batched > 1
    more = [("batched", "each client penalises its own weights", "1")] if many else []
    return more + growing_conflicts(config)


METHOD = Method(
    "weights about to be removed are penalised first; then the smallest go, large gradients come",
    "FedMef, Huang et al. 2024, arXiv 2403.14737: extrusion; scaled activation pruning is not here",
    tune=_trained,
    before=_moved,
    options=Options,
    scores=False,
    conflicts=_conflicts,
    sets={"schedule": "regrow", "score": "magnitude"},
    usual={"scope": "erk", "warmup": 0},
)
