"""The server's half of pruning: ask for statistics, score, decide one global mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fedprune.config import RunConfig
from fedprune.learning.averaging import decided
from fedprune.options.refusal import ConfigError
from fedprune.privacy.randomised_response import debiased, flip_probability
from fedprune.protocol.choice import Wanted, chosen
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Aggregate, Question
from fedprune.protocol.origin import coded_size
from fedprune.protocol.votes import vote_units_of
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import COMBINES
from fedprune.scores.inputs import unseen
from fedprune.scores.score import Evidence
from fedprune.selection.budget import OutOfReach, sparsest, sparsity_for
from fedprune.selection.regrowth import exchange
from fedprune.selection.schedules import exchange_fraction, steps_within
from fedprune.server.ask import Bench, asked, evidence_of
from fedprune.server.diagnostics import Notes, noted
from fedprune.server.standing import too_few
from fedprune.server.state import Plan, State
from fedprune.structure.flops import flops
from fedprune.structure.groups import stages_of
from fedprune.structure.layout import Layout
from fedprune.tensors import Masks, Tensors, count_kept, frozen_of, masked, shapes_of


def thin(state: State, bench: Bench) -> tuple[State, Notes]:
    """Score and prune, in as many steps and stages as the configuration says.

    The state owes a pruning if too few answered.
    """
    plan, notes = bench.plan, Notes()
    if plan.exchanges(state):
        return _exchanged(state, bench)
    for sparsity in _steps(state, plan):
        for names in _stages(plan):
            state, aggregate, evidence = asked(state, bench, names, sparsity)
            if evidence is None:
                return replace(state, owed=True), notes
            state = decide(state, plan, aggregate, evidence, sparsity)
            notes = noted(aggregate, evidence, plan)
    return rewound(state, plan), notes


def _steps(state: State, plan: Plan) -> list[float | None]:
    target, n = plan.sparsity(state.round), plan.config.score_steps
    now = sparsity_of(state.masks, plan.layout)
    if target is None or n == 1 or now >= target:
        return [target]
    return list(steps_within(now, target, n))


def _stages(plan: Plan) -> list[tuple[str, ...]]:
    return stages_of(plan.layout) if plan.config.calibration == "sequential" else [()]


def sparsity_of(masks: Masks, layout: Layout) -> float:
    """The fraction of the dense model's prunable weights that is gone."""
    return (layout.whole - count_kept(masks)) / layout.whole


def collected(state: State, plan: Plan, changes: Aggregate) -> State:
    """The state pruned by what the clients collected while they tuned."""
    question = Question("tune", state.round, state.weights, state.masks, score=plan.config.score)
    form = form_of(question, plan.config, plan.layout)
    if changes.statistics is None or too_few(changes, plan.config):
        return replace(state, owed=True)
    evidence = replace(
        evidence_of(state, plan, ()),
        sums=form.named_sums(changes.statistics),
        count=changes.totals["count"],
    )
    state = decide(state, plan, changes, evidence, plan.sparsity(state.round))
    return rewound(state, plan)


def decide(
    state: State, plan: Plan, aggregate: Aggregate, evidence: Evidence, sparsity: float | None
) -> State:
    """The state under the mask that the evidence gives; weights too, where the score sets them.

    Raises:
        ConfigError: a layer that is scored by its inputs had none, or a score of the user's own
            gives what is no score.
    """
    c = plan.config
    score = scores_of(c.plugin)[c.score]
    if score.step is not None:
        _check_seen(evidence, c)
        assert sparsity is not None  # such a score has no threshold
        shares = dict.fromkeys(evidence.weights, sparsity)
        masks, weights = score.step(evidence, shares, c.unit_shape if c.unit == "n:m" else None)
        state = replace(state, weights={**state.weights, **weights})
    else:
        scores = scored(aggregate, evidence, plan)
        masks = _selected(scores, sparsity, state, plan, evidence)
    return pruned(state, {**state.masks, **masks})


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
    scores = _combined(aggregate, evidence, plan)
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


def merged_client_masks(state: State, plan: Plan, votes: Tensor) -> State:
    """The state under one mask again, after the clients tuned under masks of their own."""
    c, sparsity = plan.config, plan.sparsity(state.round)
    weights = {n: state.weights[n] for n in state.masks}

    def choose(scores: Tensors) -> Masks:
        wanted = Wanted(sparsity, c.scope, plan.progress(state.round))
        return chosen(scores, wanted, c, plan.layout, state.masks, weights)

    return rewound(pruned(state, decided(c.masks, votes, weights, state.masks, choose)), plan)


def pruned(state: State, masks: Masks) -> State:
    """The state under new masks."""
    return replace(state, masks=masks, weights=masked(state.weights, masks), owed=False)


def rewound(state: State, plan: Plan) -> State:
    """The state with its survivors as they were in an early round, where that is wanted.

    After the last of a round's prunings: each of them is to see the weights that were trained.
    """
    if plan.config.rewind is None or state.early is None:
        return state
    return replace(state, weights=masked(state.early, state.masks))


def _combined(aggregate: Aggregate, evidence: Evidence, plan: Plan) -> Tensors:
    """One score for every weight asked about, from the pooled sums or from the clients' own."""
    c = plan.config
    score, combine = scores_of(c.plugin)[c.score], COMBINES[c.combine]
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
        assert aggregate.votes is not None  # the form wants them
        shapes, counts = shapes_of(evidence.weights), aggregate.votes.double()
        if c.response is not None:
            units = vote_units_of(c, plan.layout, evidence.masks).units
            p = flip_probability(c.response, units)
            counts = debiased(counts, len(aggregate.answered), p)
        return replace(form, shapes=shapes).named(counts)
    assert aggregate.total is not None
    if combine.merge is None:
        return form.named(aggregate.total / aggregate.weight)
    assert aggregate.singles is not None
    return form.named(combine.merge(aggregate.singles, c.trim or 0.0))


def _selected(
    scores: Tensors, sparsity: float | None, state: State, plan: Plan, evidence: Evidence
) -> Masks:
    c = plan.config
    progress = plan.progress(state.round)

    def at(share: float | None) -> Masks:
        wanted = Wanted(share, c.scope, progress)
        return chosen(scores, wanted, c, plan.layout, evidence.masks, evidence.weights)

    if sparsity is not None or c.threshold is not None:
        return at(sparsity)
    now = sparsity_of(state.masks, plan.layout)
    cost, target = cost_of(state, plan)
    n = plan.layout.whole
    key = "target-bytes" if c.target_bytes is not None else "target-flops"
    try:
        final = sparsity_for(cost, at, target, now, n, key=key)
    except OutOfReach:  # by these scores; by magnitude, before the run, it was not
        final = (n - count_kept({**state.masks, **sparsest(at, now, n)})) / n
    return at(max(now, progress * final))


def cost_of(state: State, plan: Plan) -> tuple[Callable[[Masks], float], float]:
    """What a mask costs and what it may cost: bytes of the coded file, or a part of the FLOPs."""
    c = plan.config
    if c.target_bytes is not None:
        frozen = {} if plan.model is None else frozen_of(plan.model)
        weights = {**state.weights, **frozen}
        return lambda masks: coded_size(c, weights, masks, state.edits), float(c.target_bytes)
    assert c.target_flops is not None  # one of the four ways to say how much
    whole = plan.flops_dense
    return lambda masks: flops(masks, plan.positions) / whole, c.target_flops


def _exchanged(state: State, bench: Bench) -> tuple[State, Notes]:
    """Prune and regrow at constant density: drop by the score, grow by the pooled gradient."""
    plan, c = bench.plan, bench.plan.config
    fraction = exchange_fraction(c.regrow or 0.0, *plan.exchange_step(state.round))
    state, aggregate, evidence = asked(state, bench, (), _before_growing(state, plan, fraction))
    if evidence is None:
        return replace(state, owed=True), Notes()
    question = bench.question(state, "score", score="gradient", dense=True)
    state, grown = bench.put(state, question, bench.scored)
    if grown.total is None or too_few(grown, c):
        return replace(state, owed=True), Notes()
    gradient = form_of(question, c, plan.layout).named(grown.total)
    masks = exchange(
        state.masks,
        _combined(aggregate, evidence, plan),
        {n: g.abs() for n, g in gradient.items()},
        fraction,
        scope=c.scope,
        magnitude={n: w.abs() for n, w in evidence.weights.items()},
        floor=c.floor,
    )
    moved = sum(int((masks[n] & ~m).sum()) for n, m in state.masks.items())
    notes = replace(noted(aggregate, evidence, plan), exchanged=moved)
    return pruned(state, masks), notes


def _before_growing(state: State, plan: Plan, fraction: float) -> float | None:
    """The sparsity between dropping and growing, at which clients vote; None where nobody does."""
    if COMBINES[plan.config.combine].valued:
        return None
    now = sparsity_of(state.masks, plan.layout)
    return now + fraction * (1.0 - now)
