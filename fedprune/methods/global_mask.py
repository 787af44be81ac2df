"""One mask for all: ask for statistics, score every weight, decide, then train under the mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedprune.config import RunConfig
from fedprune.methods.biases import with_biases
from fedprune.methods.method import Method
from fedprune.methods.tuning import TOO_FEW, tuned
from fedprune.options.refusal import ConfigError
from fedprune.privacy.randomised_response import debiased, flip_probability
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.choice import (
    Wanted,
    asked_at_once,
    chooses_apart,
    chosen,
    chosen_apart,
    chosen_by,
)
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.origin import coded_size
from fedprune.protocol.votes import vote_units_of
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.inputs import unseen
from fedprune.scores.score import Evidence, Score
from fedprune.selection.budget import OutOfReach, sparsest, sparsity_for
from fedprune.selection.schedules import steps_within
from fedprune.server.ask import asked
from fedprune.server.diagnostics import Notes, noted
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.structure.flops import flops
from fedprune.structure.groups import stages_of
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import joined_to, shapes_of, some_of
from fedprune.tensors.models import frozen_of
from fedprune.tensors.named import Masks, Tensors, count_kept, scattered


def thin(
    model: Model,
    memory: Any,
    r: Round,
    further: Callable[[Model, Aggregate, Evidence], Model] | None = None,
) -> Talk[Step]:
    """Score and prune, in as many steps and stages as the configuration says.

    Args:
        model: what is pruned.
        memory: that of the method.
        r: the round.
        further: what else the answers change of the pruned model.
    """
    notes = Notes()
    for sparsity in _steps(model, r):
        dense = model
        for names in _stages(r):
            seen = model if r.config.calibration == "sequential" else dense
            aggregate, evidence = yield from asked(seen, r, names, sparsity)
            if evidence is None:
                return Step(model, memory, undone=TOO_FEW)
            model, r = made_up(decide(model, r, aggregate, evidence, sparsity), r, evidence)
            model = further(model, aggregate, evidence) if further else model
            notes = noted(aggregate, evidence, r.plan)
    return Step(model, memory, notes)


def _steps(model: Model, r: Round) -> list[float | None]:
    target, n = r.plan.sparsity(r.number), r.config.score_steps
    now = sparsity_of(model.masks, r.layout)
    if target is None or n == 1 or now >= target:
        return [target]
    return list(steps_within(now, target, n))


def _stages(r: Round) -> list[tuple[str, ...]]:
    if r.config.calibration == "sequential":
        return stages_of(r.layout)
    return asked_at_once(
        scores_of(r.config.plugin)[r.config.score], r.plan.model, r.config, r.layout
    )


def sparsity_of(masks: Masks, layout: Layout) -> float:
    """The fraction of the dense model's prunable weights that is gone."""
    return (layout.whole - count_kept(masks)) / layout.whole


def decide(
    model: Model, r: Round, aggregate: Aggregate, evidence: Evidence, sparsity: float | None
) -> Model:
    """The model under the mask that the evidence gives; weights too, where the score sets them.

    Raises:
        ConfigError: a layer that is scored by its inputs had none, or a score of the user's own
            gives what is no score.
    """
    c = r.config
    score = scores_of(c.plugin)[c.score]
    if score.step is not None:
        _check_seen(evidence, c)
        assert sparsity is not None  # such a score has no threshold
        shares = dict.fromkeys(evidence.weights, sparsity)
        masks, weights = score.step(evidence, shares, c.unit_shape if c.unit == "n:m" else None)
        model = replace(model, weights=joined_to(model.weights, weights))
    else:
        found = _masks_apart(score, r, aggregate, evidence, sparsity)
        if found is None:
            scores = scored(aggregate, evidence, r.plan)
            found = _selected(scores, sparsity, model, r, evidence)
        masks = found
    return model.under(joined_to(model.masks, masks))


def made_up(model: Model, r: Round, evidence: Evidence) -> tuple[Model, Round]:
    """The pruned model with biases for what it lost, where the score says what they are."""
    makes_up = scores_of(r.config.plugin)[r.config.score].makes_up
    lost = {} if makes_up is None else makes_up(evidence, model.masks)
    return with_biases(model, r, lost) if lost else (model, r)


def _masks_apart(
    score: Score, r: Round, aggregate: Aggregate, evidence: Evidence, sparsity: float | None
) -> Masks | None:
    """The masks where tensors do not compete, one tensor's scores or votes at a time."""
    c, wanted = r.config, Wanted(sparsity, r.config.scope, r.plan.progress(r.number))
    combine = combines_of(c.plugin)[c.combine]
    if not chooses_apart(wanted, c, r.layout):
        return None
    if score.asks and not combine.pooled and not combine.valued:
        _check_seen(evidence, c)
        votes = _votes_of(aggregate, evidence, r.plan)
        return chosen_apart(votes, wanted, c, r.layout, evidence.masks, evidence.weights)
    if not ((combine.pooled or not score.asks) and score.apart):
        return None
    _check_seen(evidence, c)
    return chosen_by(score, evidence, wanted, c, r.layout)


def _votes_of(aggregate: Aggregate, evidence: Evidence, plan: Plan) -> Callable[[str], Tensor]:
    """What gives the votes for the weights of a tensor, without those that noise adds."""
    c, shapes = plan.config, shapes_of(evidence.weights)
    assert aggregate.votes is not None  # the form wants them
    names = sorted(shapes)
    sizes = [count_kept(some_of(evidence.masks, [n])) for n in names]
    parts = dict(zip(names, aggregate.votes.split(sizes), strict=True))
    p = 0.0
    if c.response is not None:
        units = vote_units_of(c, plan.layout, evidence.masks).units
        p = flip_probability(c.response, units)

    def votes(name: str) -> Tensor:
        counts = debiased(parts[name], len(aggregate.answered), p)
        return scattered(counts, {name: shapes[name]}, some_of(evidence.masks, [name]))[name]

    return votes


def _check_seen(evidence: Evidence, config: RunConfig) -> None:
    """Refuse to score a layer by inputs that no client had, as if they all were 0.

    With noise the number of rows is noised too, and says nothing about that.

    Raises:
        ConfigError: no row went through it.
    """
    lost = unseen(evidence.sums) if config.dp == "none" else []
    if lost:
        raise ConfigError(
            f"score={config.score!r}: no row went through the layer of {lost[0]} at any client "
            f"asked; allowed: --exclude {lost[0]}, a larger cohort, or another score"
        )


def scored(aggregate: Aggregate, evidence: Evidence, plan: Plan) -> Tensors:
    """One score for every weight asked about.

    Raises:
        ConfigError: a score of the user's own gives other names or shapes, or NaN.
    """
    scores = combined(aggregate, evidence, plan)
    _check_scores(scores, evidence, plan.config.score)
    return scores


def _check_scores(scores: Tensors, evidence: Evidence, name: str) -> None:
    """Refuse what a score, perhaps a user's own, made of the evidence.

    Raises:
        ConfigError: names, shapes or NaN.
    """
    wanted = {n: w.shape for n, w in evidence.weights.items()}
    found = {n: t.shape for n, t in scores.items()} if isinstance(scores, dict) else scores
    if found != wanted:
        raise ConfigError(
            f"score={name!r}: its finalise gives {str(found)[:100]}; "
            f"allowed: one tensor of the same name and shape for each of {len(wanted)} tensors"
        )
    bad = [n for n, t in scores.items() if t.isnan().any()]
    if bad:
        raise ConfigError(f"score={name!r}: its finalise gives NaN for {bad[0]}; allowed: numbers")


def combined(aggregate: Aggregate, evidence: Evidence, plan: Plan) -> Tensors:
    """One score for every weight asked about, from the pooled sums or from the clients' own."""
    c = plan.config
    score, combine = scores_of(c.plugin)[c.score], combines_of(c.plugin)[c.combine]
    _check_seen(evidence, c)
    if combine.pooled or not score.asks:
        return score.finalise(evidence)
    form = form_of(
        Question(
            "score", 1, {}, evidence.masks, c.score, len(score.asks) - 1, tuple(evidence.weights)
        ),
        c,
        plan.layout,
    )
    if not combine.valued:
        votes = _votes_of(aggregate, evidence, plan)
        return {name: votes(name) for name in evidence.weights}
    assert aggregate.total is not None
    if combine.merge is None:
        return form.named(aggregate.total / aggregate.weight)
    assert aggregate.singles is not None
    return form.named(combine.merge(aggregate.singles, c.trim or 0.0))


def _selected(
    scores: Tensors, sparsity: float | None, model: Model, r: Round, evidence: Evidence
) -> Masks:
    c, plan = r.config, r.plan
    progress = plan.progress(r.number)

    def at(share: float | None) -> Masks:
        wanted = Wanted(share, c.scope, progress)
        return chosen(scores, wanted, c, plan.layout, evidence.masks, evidence.weights)

    if sparsity is not None or c.threshold is not None:
        return at(sparsity)
    now = sparsity_of(model.masks, plan.layout)
    cost, target = cost_of(model, plan)
    n = plan.layout.whole
    key = "target-bytes" if c.target_bytes is not None else "target-flops"
    try:
        final = sparsity_for(cost, at, target, now, n, key=key)
    except OutOfReach:  # by these scores; by magnitude, before the run, it was not
        final = (n - count_kept({**model.masks, **sparsest(at, now, n)})) / n
    return at(max(now, progress * final))


def cost_of(model: Model, plan: Plan) -> tuple[Callable[[Masks], float], float]:
    """What a mask costs and what it may cost: bytes of the coded file, or a part of the FLOPs."""
    c = plan.config
    if c.target_bytes is not None:
        frozen = {} if plan.model is None else frozen_of(plan.model)
        weights = {**model.weights, **frozen}
        return lambda masks: coded_size(c, weights, masks, model.edits), float(c.target_bytes)
    assert c.target_flops is not None  # one of the four ways to say how much
    whole = plan.flops_dense
    return lambda masks: flops(masks, plan.positions) / whole, c.target_flops


METHOD = Method(
    "one mask for all, by the clients' summed statistics before they train",
    "the plain composition; FedAvg, McMahan et al. 2017, arXiv 1602.05629, on what is kept",
    tune=tuned(),
    before=thin,
)
