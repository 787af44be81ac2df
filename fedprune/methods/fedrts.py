"""FedRTS: which weights are kept is drawn from what is believed of each of them.

Huang et al. 2025, arXiv 2501.19122. Every weight has a Beta posterior. In a pruning an outcome in
[0, 1] is observed for each weight and added to it, alpha += lambda·x and beta += lambda·(1-x); then
one number is drawn from each posterior, and the weights with the largest are kept. A weight that
one cohort thinks little of is not lost for that: what earlier cohorts said counts, and chance gives
it a try.

Of n kept weights k = n - (part exchanged)·n are the safe ones, and X = gamma·X_agg + (1-gamma)·(the
mean of what clients observe). Of a weight that is kept X_agg says whether it is among the k best by
the pooled score, and a client whether it is among its own k best; of one that is removed X_agg is
1/2, and beside it stands whether the pooled gradient at it is among the n - k largest. The part
exchanged falls with the cosine of `fedprune.selection.schedules`.

Where it departs from the paper: clients rank kept weights by ``--score`` at the global weights (in
the paper by the size of their trained weights), so that their votes are those of any run, in which
a client counts once (there by its share of the data); outcomes are observed in pruning rounds alone
(there those of kept weights in every round); gradients of removed weights are summed over clients,
who send all of them (in the paper each names its largest). Posteriors begin uniform (alpha = beta =
1), and before the first pruning all weights are kept (the paper draws the first mask, too).
Sparsity may rise on the way (``--schedule``); with ``--schedule regrow`` it is constant, as in the
paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedprune.config import RunConfig
from fedprune.methods.apart import not_read
from fedprune.methods.growing import all_kept, grown_in, pooled_gradient
from fedprune.methods.method import Method, Refusable
from fedprune.methods.scored import best, scored
from fedprune.methods.tuning import TOO_FEW, tuned
from fedprune.options.option import option
from fedprune.options.section import Section
from fedprune.randomness import numpy_generator
from fedprune.scores.catalog import scores_of
from fedprune.selection.schedules import exchange_fraction
from fedprune.server.ask import asked
from fedprune.server.diagnostics import noted
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, Tensors, scattered


class Options(Section):
    """What ``--method-options`` takes."""

    exchange: float = option(
        "method", "part of the kept weights in doubt at first", 0.4, gt=0, le=1
    )
    gamma: float = option(
        "method", "weight of the pooled score in outcomes (gamma)", 0.5, ge=0, le=1
    )
    weight: float = option("method", "what an outcome adds to a posterior (lambda)", 10.0, gt=0)


@dataclass(frozen=True)
class Memory:
    """alpha and beta of every weight's posterior."""

    alpha: Tensors
    beta: Tensors


def _init(model: Model, _: Round) -> Memory:
    """Nothing is believed yet: Beta(1, 1)."""
    ones = {n: torch.ones(m.shape) for n, m in model.masks.items()}
    return Memory(ones, {n: t.clone() for n, t in ones.items()})


def adjusted(model: Model, memory: Memory, r: Round) -> Talk[Step]:
    """The mask drawn from the posteriors after this cohort's outcomes."""
    target = r.plan.sparsity(r.number)
    assert target is not None  # else it is refused
    fraction = exchange_fraction(r.options.exchange, *r.plan.exchange_step(r.number))
    safe = target + fraction * (1.0 - target)
    aggregate, evidence = yield from asked(model, r, (), safe)
    if evidence is None or aggregate.votes is None:
        return Step(model, memory, undone=TOO_FEW)
    gradient = yield from pooled_gradient(model, r)
    if gradient is None:
        return Step(model, memory, undone=TOO_FEW)
    votes = aggregate.votes.float() / len(aggregate.answered)
    share = scattered(votes, shapes_of(model.masks), model.masks)
    top = best(scored(aggregate, evidence, r.plan), safe, model, r)
    wanted = largest(gradient, model.masks, round(fraction * (1.0 - target) * r.layout.whole))
    won = outcomes(r.options.gamma, model.masks, top, share, wanted)
    memory = updated(memory, won, r.options.weight)
    masks = best(_drawn(memory, r.config.seed, r.number), target, model, r, all_kept(model))
    fresh = grown_in(masks, model.masks)
    notes = replace(noted(aggregate, evidence, r.plan), exchanged=fresh)
    return Step(model.under(masks), memory, notes)


def largest(gradient: Tensors, masks: Masks, n: int) -> Masks:
    """Which removed weights have the n largest pooled gradients."""
    names = list(masks)
    sizes = torch.cat([gradient[k].abs().masked_fill(masks[k], -1.0).flatten() for k in names])
    n = min(n, int((sizes >= 0).sum()))
    flags = torch.zeros(sizes.numel(), dtype=torch.bool)
    flags[sizes.sort(descending=True, stable=True).indices[:n]] = True
    parts = flags.split([masks[k].numel() for k in names])
    return {k: part.reshape(masks[k].shape) for k, part in zip(names, parts, strict=True)}


def outcomes(gamma: float, kept: Masks, top: Masks, share: Tensors, wanted: Masks) -> Tensors:
    """What is observed of each weight, in [0, 1].

    Args:
        gamma: the say of the pooled score; clients have the rest.
        kept: the mask before.
        top: which kept weights are among the safe ones by the pooled score.
        share: the part of the clients that say so of a kept weight.
        wanted: which removed weights have the largest gradients.
    """
    return {
        n: torch.where(
            m,
            gamma * top[n].float() + (1 - gamma) * share[n],
            gamma * 0.5 + (1 - gamma) * wanted[n].float(),
        )
        for n, m in kept.items()
    }


def updated(memory: Memory, won: Tensors, weight: float) -> Memory:
    """The posteriors after these outcomes."""
    return Memory(
        {n: a + weight * won[n] for n, a in memory.alpha.items()},
        {n: b + weight * (1.0 - won[n]) for n, b in memory.beta.items()},
    )


def _drawn(memory: Memory, seed: int, round_: int) -> Tensors:
    """One number from each posterior, the same for a seed and round."""
    gen = numpy_generator(seed, "thompson", round_)
    return {
        n: torch.from_numpy(gen.beta(a.numpy(), memory.beta[n].numpy()))
        for n, a in memory.alpha.items()
    }


def _conflicts(config: RunConfig, _: Options) -> list[Refusable]:
    c, score = config, scores_of(config.plugin)[config.score]
    return [
        ("dp", c.dp != "none", "gradients of all weights are asked for", "none"),
        ("secure", c.secure != "none", "gradients of all weights are asked for", "none"),
        ("unit", c.unit != "weight", "single weights come back", "weight"),
        ("sparsity", c.sparsity is None, "as many weights are kept as are drawn", "a number"),
        ("agreement", not c.agreement, "clients' own masks are counted", "true"),
        ("score", score.step is not None, "it sets weights", "a score that only ranks"),
        ("score-steps", c.score_steps != 1, "one draw a pruning", "1"),
        ("calibration", c.calibration != "dense", "all weights are drawn at once", "dense"),
        ("shrink", c.shrink == "every", "what was cut out cannot come back", "never, end"),
        ("rewind", c.rewind is not None, "what comes back begins at 0", "leave it out"),
        ("reconstruct", c.reconstruct is not None, "what comes back begins at 0", "leave it out"),
        ("scaffold", c.scaffold, "what comes back has no control variate", "false"),
        *not_read(c, ("regrow",), "the method's option exchange says how much"),
        ("reduce", bool(c.reduce), "what was taken out cannot come back", "leave it out"),
    ]


METHOD = Method(
    "weights are kept by draws from posteriors that every cohort's masks and gradients update",
    "FedRTS, Huang et al. 2025, arXiv 2501.19122; clients rank by --score at the global weights, "
    "gradients are summed",
    tune=tuned(),
    before=adjusted,
    memory=Memory,
    init=_init,
    options=Options,
    conflicts=_conflicts,
)
