"""FedTiny: the best of some coarse masks by BatchNorm's statistics; then a block at a time moves.

Huang et al. 2023 (ICDCS), arXiv 2212.01977.

1. Adaptive BatchNorm selection. The server makes some coarsely pruned models of the sparsity,
   whose layer densities differ by chance, each keeping the largest |w| of every layer. Clients
   take the statistics of BatchNorm of every one anew on their data, the server averages them, and
   clients measure every one, with these, on their validation parts: the model with the lowest loss
   is trained. So candidates are compared under statistics of the clients' own data.
2. Progressive pruning. In every further pruning round one block, from the last one backwards, gives
   up the smallest |w| and grows as many of the removed weights with the largest |Σ_k gradient_k|,

       a = 0.15 · (1 + cos(t pi / T))   of its kept weights (``--regrow`` 0.3),

   so that a client has a block's gradients in memory, and sends these.

Where it departs from the paper: candidates' densities are ``--scope``'s (uniform) times 1 plus a
number within ``spread``, scaled to the sparsity; the statistics are those of the usual training
mode over a client's steps with a learning rate of 0 (the zero changes are sent too); clients send
all gradients of the block's removed weights (the paper: the largest a), at the averaged weights
before they train; they are of the whole shard. A model without BatchNorm is measured as it is.
"""

from __future__ import annotations

from typing import Any

import torch

from fedprune.config import RunConfig
from fedprune.methods.growing import exchanged_among, growing_conflicts
from fedprune.methods.method import Method, Refusable
from fedprune.methods.tuning import TOO_FEW, fedavg, tuned, tuning_ask, void
from fedprune.options.option import Count, option
from fedprune.options.section import Section
from fedprune.protocol.port import Ask
from fedprune.randomness import generator
from fedprune.selection.regrowth import in_proportion, largest_of_each
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.structure.groups import stages_of
from fedprune.tensors.named import Masks


class Options(Section):
    """What ``--method-options`` takes."""

    candidates: Count = option("method", "coarse masks that are tried", 5)
    spread: float = option("method", "how far layer densities differ", 0.5, ge=0, lt=1)


def coarse_masks(model: Model, r: Round, which: int) -> Masks:
    """A candidate: of every layer the largest, as many as chance has it; the first is even."""
    gen = generator(r.config.seed, "coarse masks", which)
    sizes = {n: model.weights[n].abs() for n in model.masks}
    room = [m.numel() for m in model.masks.values()]
    noise = (2 * torch.rand(len(room), generator=gen) - 1) * (r.options.spread if which else 0.0)
    by = [n * (1.0 + float(e)) for n, e in zip(room, noise, strict=True)]
    whole = sum(room)
    keep = whole - int((r.plan.sparsity(r.number) or 0.0) * whole + 0.5)
    return largest_of_each(sizes, in_proportion(keep, by, room), model.masks)


def _selected(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """The candidate with the lowest loss under statistics of the clients' data."""
    tried = [model.under(coarse_masks(model, r, i)) for i in range(r.options.candidates)]
    if r.layout.variances:
        sums = yield [tuning_ask(m, r, r.cohort, lr=0.0) for m in tried]
        if any(void(s, r) for s in sums):
            return Step(model, memory, undone=TOO_FEW)
        tried = [fedavg(m, r, s, 1.0) for m, s in zip(tried, sums, strict=True)]
    sums = yield [Ask(r.question(m, "evaluate", part="validation"), r.cohort) for m in tried]
    if any(not s.totals.get("count") or too_few(s, r.config) for s in sums):
        return Step(model, memory, undone=TOO_FEW)
    losses = [s.totals["loss"] / s.totals["count"] for s in sums]
    best = losses.index(min(losses))
    return Step(tried[best], memory, Notes(method={"losses": losses, "took": best}))


def _moved(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """One block exchanges weights; before the first pruning, the candidates."""
    if not r.prunings:
        return (yield from _selected(model, memory, r))
    step, _ = r.plan.exchange_step(r.number)
    blocks = stages_of(r.layout)
    names = blocks[-1 - (step - 1) % len(blocks)]
    return (yield from exchanged_among(model, memory, r, names))


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    alone = "spread" in config.method_options and options.candidates == 1
    why, allowed = "of one candidate there is nothing to spread", "leave spread out"
    return [("method-options", alone, why, allowed), *growing_conflicts(config)]


METHOD = Method(
    "the best of some coarse masks by fresh statistics; then block by block weights are exchanged",
    "FedTiny, Huang et al. 2023, arXiv 2212.01977; clients send all gradients of a block",
    tune=tuned(),
    before=_moved,
    options=Options,
    scores=False,
    conflicts=_conflicts,
    sets={"schedule": "regrow", "score": "magnitude"},
    usual={"scope": "layer", "warmup": 0},
)
