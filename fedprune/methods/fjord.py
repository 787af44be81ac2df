"""FjORD: clients of unequal capacity train nested parts of one model, one drawn for every step.

Horvath et al. 2021, NeurIPS, arXiv 2102.13451. A part of width p has the first units of every
layer. In every step a client whose largest width is p_max draws one of the widths up to p_max with
equal probability (ordered dropout), and trains that part alone. The server averages each weight
over the clients whose largest part contains it: Σ n_k m_k w_k / Σ n_k m_k. Any width can be taken
out of the trained model; which one is, ``--sparsity`` says.

**The rule was written from memory of the paper**, of which only the abstract could be read (sought
again in November 2026), and compared with Flower's baseline of that name (adap/flower,
baselines/fjord: client, strategy, BatchNorm).

A width is the part of the prunable weights that a mask of whole units (``--unit``) keeps. Partition
p has the width number p mod their number as its largest, or that of its simulated device
(``--budget``).

Where it departs from the paper and that baseline: widths are densities of weights (there a layer of
K units keeps ceil(p·K)); no distillation from the largest part to the others; a part is a mask, so
it saves bytes but no time; all widths share BatchNorm's running statistics, which are averaged like
weights (there every width has its own); biases of units outside a part are trained too (where the
unit is a channel, nothing reads them).
"""

from __future__ import annotations

from typing import Any

from fedprune.config import RunConfig
from fedprune.learning.regime import Regime
from fedprune.methods.apart import apart_conflicts, part_conflicts
from fedprune.methods.global_mask import sparsity_of
from fedprune.methods.holders import by_tier, trained_apart
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.regimes import regime_conflicts
from fedprune.methods.tuning import tuning_ask
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.protocol.choice import first_parts
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model


class Options(Section):
    """What ``--method-options`` takes."""

    widths: tuple[float, ...] = option(
        "method", "densities of the nested parts, from above 0 to 1", (1.0, 0.75, 0.5, 0.25)
    )


def _cut(model: Model, memory: Any, r: Round) -> Talk[Step]:
    """The first units of the model, as many as the sparsity allows."""
    yield from ()
    left = (1.0 - (r.plan.sparsity(r.number) or 0.0)) / (1.0 - sparsity_of(model.masks, r.layout))
    (part,) = first_parts([min(1.0, left)], model.masks, model.weights, r.config, r.layout)
    return Step(model.under(part), memory)


def _trained(model: Model, _: Any, r: Round) -> Talk[Trained]:
    """Every client trains widths up to its own, all in one exchange."""
    widths = r.options.widths
    parts = first_parts(widths, model.masks, model.weights, r.config, r.layout)
    asked = []
    for tier, those in by_tier(r, r.plan.tiers, len(widths)).items():
        regime = Regime(widths=tuple(w / widths[tier] for w in widths if w <= widths[tier]))
        sent = model.under(parts[tier])
        asked.append((sent, tuning_ask(sent, r, those, regime=regime)))
    return (yield from trained_apart(model, r, asked))


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    c, own = config, "clients train parts of their own"
    beyond = "nobody would train what is beyond the widest part"
    single = c.unit in ("weight", "n:m", "block", "column")
    allowed = "widths with 1.0 among them"
    return [
        *regime_conflicts(c),
        *part_conflicts(options.widths, "widths are densities", beyond, allowed),
        ("unit", single, "a width is of whole units", "channel, row, neuron, head"),
        ("score", "score" in c.given and c.score != "magnitude", "first units stay", "leave out"),
        *apart_conflicts(c),
        ("reduce", bool(c.reduce), own, "leave it out"),
    ]


METHOD = Method(
    "clients train nested first parts of one model, a width drawn for every step",
    "FjORD, Horvath et al. 2021, arXiv 2102.13451, from memory; without distillation, BatchNorm's "
    "statistics are common to all widths",
    tune=_trained,
    before=_cut,
    options=Options,
    scores=False,
    apart=True,
    parts=lambda options: options.widths,
    conflicts=_conflicts,
    usual={"score": "magnitude", "unit": "channel"},
)
