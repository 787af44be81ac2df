"""What methods share whose clients exchange weights as they train: the ask, the mean, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fedprune.config import RunConfig
from fedprune.methods.holders import Sent, over_holders
from fedprune.methods.method import Refusable
from fedprune.methods.tuning import TOO_FEW, tuning_ask
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.choice import Wanted, chosen
from fedprune.protocol.forms import form_of
from fedprune.protocol.port import Ask
from fedprune.randomness import generator
from fedprune.selection.regrowth import exchange_weights
from fedprune.selection.schedules import exchange_fraction
from fedprune.server.diagnostics import Notes
from fedprune.server.round import Round, Step, Talk
from fedprune.server.standing import too_few
from fedprune.server.state import Model
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, Tensors, scattered


def pooled_gradient(model: Model, r: Round, names: tuple[str, ...] = ()) -> Talk[Tensors | None]:
    """The scored clients' summed gradient, of removed weights too; None: too few answered."""
    question = r.question(model, "score", score="gradient", dense=True, names=names)
    (sums,) = yield [Ask(question, r.scored)]
    if sums.total is None or too_few(sums, r.config):
        return None
    return form_of(question, r.config, r.layout).named(sums.total)


def grown_in(masks: Masks, before: Masks) -> int:
    """How many weights of the masks were not kept before."""
    return sum(int((m & ~before[n]).sum()) for n, m in masks.items())


def exchanging_ask(model: Model, r: Round, partitions: Sequence[int], **how: Any) -> Ask:
    """The question to train and exchange weights during it (`fedprune.client.exchange`)."""
    return tuning_ask(model, r, partitions, **{"grow": "gradient", **how})


def fraction_in(r: Round) -> float:
    """The part of the kept weights that is exchanged in a round, as ``--regrow`` falls.

    0.0 where no pruning is due, and in the first one.
    """
    if not (r.due and r.prunings):
        return 0.0
    return exchange_fraction(r.config.regrow or 0.0, *r.plan.exchange_step(r.number))


def random_masks(model: Model, r: Round, sparsity: float, which: int = 0) -> Masks:
    """Masks of a sparsity drawn at random, with as many weights in every tensor as ``--scope`` has.

    `which`: of several draws.
    """
    gen = generator(r.config.seed, "random masks", which)
    drawn = {n: torch.rand(m.shape, generator=gen) for n, m in model.masks.items()}
    weights = {n: model.weights[n] for n in drawn}
    wanted = Wanted(sparsity, r.config.scope)
    return chosen(drawn, wanted, r.config, r.layout, all_kept(model), weights)


def kept_in_all(r: Round) -> int:
    """How many weights are kept at ``--sparsity``."""
    whole = r.layout.whole
    return whole - int((r.config.sparsity or 0.0) * whole + 0.5)


def all_kept(model: Model) -> Masks:
    """Masks that keep all."""
    return {n: torch.ones_like(m) for n, m in model.masks.items()}


def holders(model: Model, changes: Aggregate) -> Tensors:
    """How many clients kept each weight, after they exchanged some."""
    assert changes.votes is not None  # their masks are their own
    return scattered(changes.votes, shapes_of(model.masks), {})


def over_exchanged(model: Model, r: Round, sent: Sequence[Sent], fewest: int = 1) -> Model:
    """The model whose weights are means over the clients that kept them: Σ n_k m_k w_k / Σ n_k m_k.

    What fewer clients keep is removed; what none of them was sent stays as it was.
    """
    votes = [holders(model, each.changes) for each in sent]
    masks = {}
    for n, mask in model.masks.items():
        asked = torch.stack([each.model.masks[n] for each in sent]).any(0)
        masks[n] = (torch.stack([v[n] for v in votes]).sum(0) >= fewest) | (mask & ~asked)
    return over_holders(replace(model, masks=all_kept(model)), r, sent).under(masks)


def exchanged_among(model: Model, memory: Any, r: Round, names: tuple[str, ...]) -> Talk[Step]:
    """The model whose tensors of these names exchanged weights, by size and pooled gradient."""
    found = yield from pooled_gradient(model, r, names)
    if found is None:
        return Step(model, memory, undone=TOO_FEW)
    here = {n: model.masks[n] for n in names}
    sizes = {n: model.weights[n].abs() for n in names}
    slopes = {n: found[n].abs() for n in names}
    masks = exchange_weights(
        here, sizes, slopes, fraction_in(r), scope="layer", magnitude=sizes, floor=r.config.floor
    )
    notes = Notes(exchanged=grown_in(masks, here))
    return Step(model.under({**model.masks, **masks}), memory, notes)


def growing_conflicts(c: RunConfig) -> list[Refusable]:
    """What does not go with weights that grow, whoever decides it."""
    own = "gradients of removed weights or clients' own masks travel"
    back = "what grows begins at 0"
    return [
        ("sparsity", c.sparsity is None, "as many weights grow as go", "a number"),
        ("dp", c.dp != "none", own, "none"),
        ("secure", c.secure != "none", own, "none"),
        ("unit", c.unit != "weight", "single weights grow", "weight"),
        ("score-steps", c.score_steps != 1, "one exchange a pruning", "1"),
        ("calibration", c.calibration != "dense", "all layers exchange at once", "dense"),
        ("error-feedback", c.error_feedback, "what was kept back is of another mask", "false"),
        ("scaffold", c.scaffold, "what grows has no control variate", "false"),
        ("shrink", c.shrink == "every", "what was cut out cannot come back", "never, end"),
        ("rewind", c.rewind is not None, back, "leave it out"),
        ("reconstruct", c.reconstruct is not None, back, "leave it out"),
        ("reduce", bool(c.reduce), "what was taken out cannot come back", "leave it out"),
    ]


def exchanging_conflicts(c: RunConfig) -> list[Refusable]:
    """What does not go with clients that exchange weights by themselves."""
    own = "clients' changes are of different weights"
    return [
        ("robust", c.robust != "none", own, "none"),
        ("average", c.average is not None, "each weight is averaged over its holders", "leave out"),
        ("max-norm", c.max_norm is not None, own, "leave it out"),
        ("blend", c.blend != "none", own, "none"),
        *growing_conflicts(c),
    ]
