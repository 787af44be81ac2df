"""FedMef: weights about to be removed are penalised first, so that the others replace them.

Huang et al. 2024 (CVPR), arXiv 2403.14737. Training begins with a random mask (``--scope``). In the
round before one that prunes, and within its steps, clients minimise in place of their loss

    L(w) + lambda · Σ_{j low} w_j²,

low: of every layer the part of the kept weights with the smallest |w| at the round's beginning that
is to be exchanged next (budget-aware extrusion). Then that part, of the averaged weights the
smallest |w| of every layer, goes, and as many removed ones with the largest |Σ_k gradient_k| come,
from 0. The part falls with the cosine of `fedprune.selection.schedules` (``--regrow``).

With ``activations`` a, clients take the gradient of a layer's weights by the largest |x| of its
inputs alone, the part 1 - a of a batch's (activation pruning: what is kept for the backward pass is
sparse); outputs and the gradients of inputs stay exact.

Of the paper its abstract could be read, not its equations; of the FedPruning library the method's
code. Activations are pruned as that code does: of all inputs of a layer, convolution or linear, the
largest |x| of a batch are kept, and its output is exact. Departures:

- Activations are **not scaled**. In the paper they are the outputs of normalised sparse
  convolutions, which take BatchNorm's place and hold activations near 0; its formula could not be
  read, and the library has no such layer: its networks keep BatchNorm, as those here do.
- Dense tensors hold what is pruned, so that training takes the usual memory or more, and the
  default prunes no activations.
- The learning rate stays as it is while clients extrude. The library raises it, up to a limit, by
  the L1 norm of what is penalised and by how far the round is; its penalty is the L2 norm itself.
- Clients send all gradients of removed weights (the paper: the largest), of their whole shards.
"""

from __future__ import annotations

from typing import Any

from fedprune.config import RunConfig
from fedprune.learning.regime import Regime
from fedprune.methods.growing import exchanged_among, growing_conflicts, random_masks
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.regimes import regime_conflicts
from fedprune.methods.tuning import with_mean
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.selection.schedules import exchange_fraction
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model


class Options(Section):
    """What ``--method-options`` takes."""

    extrusion: float = option("method", "penalty of weights soon removed (lambda)", 0.1, ge=0)
    activations: float = option(
        "method",
        "part of a layer's inputs that counts as 0 in its weights' gradient",
        0.0,
        ge=0,
        lt=1,
    )


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


def _trained(model: Model, _: Any, r: Round) -> Talk[Trained]:
    """The usual mean, of clients that extrude where weights go next."""
    part = part_next(r)
    press = {"extrude": r.options.extrusion, "exchange": part} if part else {}
    how = press if r.options.extrusion else {}
    if r.options.activations:
        how = {**how, "regime": Regime(inputs=r.options.activations)}
    return (yield from with_mean(model, r, **how))


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    many = config.batched > 1
    own = regime_conflicts(config) if options.activations else []
    more = ("batched", many, "each client penalises its own weights", "1")
    return [more, *own, *growing_conflicts(config)]


METHOD = Method(
    "weights soon removed are penalised first; the smallest go, those with large gradients come",
    "FedMef, Huang et al. 2024, arXiv 2403.14737: extrusion; activations are pruned, not scaled",
    tune=_trained,
    before=_moved,
    options=Options,
    scores=False,
    conflicts=_conflicts,
    sets={"schedule": "regrow", "score": "magnitude"},
    usual={"scope": "erk", "warmup": 0},
)
