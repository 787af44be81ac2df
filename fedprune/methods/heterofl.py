"""HeteroFL: clients of unequal strength train narrower parts of one model.

Diao, Ding and Tarokh 2021, arXiv 2010.01264. Every client has a tier; the clients of a tier train
the same part of the model, narrower for lower tiers, the parts nested in one another. The server
averages each weight over the clients whose part has it: Σ n_k m_k w_k / Σ n_k m_k.

A tier's part is what a score keeps of the global model: of tier t as many units (``--unit``) as
its density is of the model's. Tiers are fixed, partition p is in tier p mod their number, or in
that of its simulated device (``--budget``).

Where it departs from the paper: parts are chosen by ``--score`` in place of the first so many
units, and again at every pruning; a tier trains under a mask, so that it saves bytes, and not yet
time; clients are weighted by labels (the paper counts them alike: ``--weighting equal``); no scaler
(the paper divides activations by the width while training), batch statistics are averaged like
weights (the paper measures them once at the end), and the loss of labels that a client lacks is
not masked.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedprune.config import RunConfig
from fedprune.methods.apart import apart_conflicts, part_conflicts
from fedprune.methods.holders import part_of_client, trained_by_part
from fedprune.methods.method import Method, Refusable, Trained
from fedprune.methods.scored import best, scored
from fedprune.methods.tuning import TOO_FEW
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.scores.catalog import scores_of
from fedprune.server.ask import asked
from fedprune.server.diagnostics import noted
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.named import Masks


class Options(Section):
    """What ``--method-options`` takes."""

    tiers: tuple[float, ...] = option(
        "method", "densities of the tiers' parts of the model, from above 0 to 1", (1.0, 0.5, 0.25)
    )


@dataclass(frozen=True)
class Memory:
    """The mask of each tier's part; none before the first pruning, when all train everything.

    And the tier of every client, where its device decides that.
    """

    tiers: tuple[Masks, ...] = ()
    whose: tuple[int, ...] = ()


def _parted(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The global model pruned, and a part of it for each tier, by one score."""
    target = r.plan.sparsity(r.number)
    aggregate, evidence = yield from asked(model, r, (), target)
    if evidence is None or target is None:
        return Step(model, memory, undone=TOO_FEW)
    scores = scored(aggregate, evidence, r.plan)
    parts = [best(scores, 1.0 - d * (1.0 - target), model, r) for d in r.options.tiers]
    pruned = model.under(best(scores, target, model, r))
    return Step(pruned, Memory(tuple(parts), memory.whose), noted(aggregate, evidence, r.plan))


def _own(model: Model, memory: Memory, partition: int) -> Model:
    if not memory.tiers:
        return model
    return part_of_client(model, memory.tiers, memory.whose, partition)


def _trained(model: Model, memory: Memory, r: Round) -> Talk[Trained]:
    """Every tier trains its part; before the first pruning all of them train everything."""
    parts = memory.tiers or (model.masks,) * len(r.options.tiers)
    return (yield from trained_by_part(model, r, parts, memory.whose))


def _conflicts(config: RunConfig, options: Options) -> list[Refusable]:
    c, score = config, scores_of(config.plugin)[config.score]
    untrained, allowed = "nobody would train the rest", "tiers with 1.0 among them"
    return [
        *part_conflicts(options.tiers, "tiers are densities", untrained, allowed),
        ("sparsity", c.sparsity is None, "a tier is a part of what is kept", "a number"),
        ("score", score.step is not None, "it sets weights", "a score that only ranks"),
        ("schedule", c.schedule == "regrow", "parts are chosen among what is kept", "cubic"),
        ("score-steps", c.score_steps != 1, "one ranking gives all parts", "1"),
        ("calibration", c.calibration != "dense", "one ranking gives all parts", "dense"),
        *apart_conflicts(c),
    ]


METHOD = Method(
    "clients in tiers train nested parts of one model, each weight averaged over its holders",
    "HeteroFL, Diao et al. 2021, arXiv 2010.01264; parts by --score, no scaler, no masked loss",
    tune=_trained,
    before=_parted,
    memory=Memory,
    init=lambda _, r: Memory(whose=r.plan.tiers),
    options=Options,
    own=_own,
    apart=True,
    parts=lambda options: options.tiers,
    conflicts=_conflicts,
)
