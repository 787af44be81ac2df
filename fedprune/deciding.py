"""The server's half of pruning: ask for statistics, score, decide one global mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedprune.choosing import Wanted, chosen
from fedprune.compression.coded import coded_size
from fedprune.forms import form_of
from fedprune.learning.averaging import decided
from fedprune.messages import Folded, Question
from fedprune.notes import Notes
from fedprune.plugins import scores_of
from fedprune.pruning.amount import sparsity_for
from fedprune.pruning.combining import COMBINES
from fedprune.pruning.flops import flops
from fedprune.pruning.regrowth import exchange
from fedprune.pruning.schedules import exchange_fraction, steps_within
from fedprune.pruning.score import Evidence, Score
from fedprune.pruning.structure import stages_of
from fedprune.randomness import derive, generator
from fedprune.state import Plan, State
from fedprune.tensors import Masks, Tensors, count_kept, frozen_of, full_masks, load_into, masked

Put = Callable[[State, Question, Sequence[int]], tuple[State, Folded]]
"""Puts a question to partitions; the state has the traffic and the failures in it."""

Ask = Callable[..., Question]
"""Makes a question about a state."""


@dataclass(frozen=True)
class Bench:
    """Where the server decides: what it asks through and plans with.

    Attributes:
        plan: what stays the same for the run.
        put: puts a question to the cohort.
        question: makes one about a state.
        cohort: the partitions asked.
    """

    plan: Plan
    put: Put
    question: Ask
    cohort: Sequence[int]


def thin(state: State, bench: Bench) -> tuple[State, Notes]:
    """Score and prune, in as many steps and stages as the configuration says.

    The state owes a pruning if too few answered.
    """
    plan, notes = bench.plan, Notes()
    if plan.exchanges(state.round):
        return _exchanged(state, bench)
    for sparsity in _steps(state, plan):
        for names in _stages(plan):
            state, folded, evidence = _asked(state, bench, names, sparsity)
            if evidence is None:
                return replace(state, owed=True), notes
            state = decide(state, plan, folded, evidence, sparsity)
            notes = _noted(folded, evidence, plan)
    return state, notes


def _steps(state: State, plan: Plan) -> list[float | None]:
    target, n = plan.sparsity(state.round), plan.config.score_steps
    if target is None or n == 1:
        return [target]
    return list(steps_within(sparsity_of(state.masks), target, n))


def _stages(plan: Plan) -> list[tuple[str, ...]]:
    return stages_of(plan.layout) if plan.config.calibration == "sequential" else [()]


def sparsity_of(masks: Masks) -> float:
    """The fraction of prunable weights that is gone."""
    total = sum(m.numel() for m in masks.values())
    return (total - count_kept(masks)) / total


def _asked(
    state: State, bench: Bench, names: tuple[str, ...], sparsity: float | None
) -> tuple[State, Folded, Evidence | None]:
    """All asks of the score, and the evidence of the last; none, if too few answered."""
    c, plan = bench.plan.config, bench.plan
    score = scores_of(c.plugin)[c.score]
    evidence = _evidence(state, plan, names)
    folded = Folded(answered=tuple(bench.cohort))
    for i, ask in enumerate(score.asks):
        given = {} if ask.given is None else ask.given(evidence)
        given = {n: t.float() for n, t in given.items()}
        last = i == len(score.asks) - 1
        votes = sparsity if last and _voting(score, plan) else None
        what: dict[str, Any] = {"score": c.score, "ask": i, "names": names, "given": given}
        question = bench.question(state, "score", **what, sparsity=votes)
        state, folded = bench.put(state, question, bench.cohort)
        if len(folded.answered) < c.min_clients or not folded.answered:
            return state, folded, None
        evidence = _with_sums(evidence, folded, question, plan)
    return state, folded, evidence


def _voting(score: Score, plan: Plan) -> bool:
    c = plan.config
    return score.step is None and (c.agreement or not COMBINES[c.combine].valued)


def _with_sums(evidence: Evidence, folded: Folded, question: Question, plan: Plan) -> Evidence:
    form = form_of(question, plan.config, plan.layout)
    sums = {} if folded.total is None else form.named(folded.total)
    count = folded.totals["count"]
    return replace(evidence, sums=sums, count=count, given=question.given)


def _evidence(state: State, plan: Plan, names: tuple[str, ...]) -> Evidence:
    c = plan.config
    chosen_names = names or plan.layout.prunable
    if plan.model is not None:
        load_into(plan.model, state.weights)
        plan.model.eval()
    return Evidence(
        sums={},
        count=1.0,
        weights={n: state.weights[n] for n in chosen_names},
        masks={n: state.masks[n] for n in chosen_names},
        layout=plan.layout,
        generator=generator(c.seed, "score", state.round),
        seed=derive(c.seed, "score", state.round),
        probes=c.probes or 0,
        unit=c.unit,
        model=plan.model,
        dummy=plan.dummy,
    )


def collected(state: State, plan: Plan, changes: Folded) -> State:
    """The state pruned by what the clients collected while they tuned."""
    question = Question("tune", state.round, state.weights, state.masks, score=plan.config.score)
    form = form_of(question, plan.config, plan.layout)
    if changes.statistics is None or len(changes.answered) < plan.config.min_clients:
        return replace(state, owed=True)
    evidence = replace(
        _evidence(state, plan, ()),
        sums=form.named_sums(changes.statistics),
        count=changes.totals["count"],
    )
    return decide(state, plan, changes, evidence, plan.sparsity(state.round))


def decide(
    state: State, plan: Plan, folded: Folded, evidence: Evidence, sparsity: float | None
) -> State:
    """The state under the mask that the evidence gives; weights too, where the score sets them."""
    c = plan.config
    score = scores_of(c.plugin)[c.score]
    if score.step is not None:
        assert sparsity is not None  # such a score has no threshold
        shares = dict.fromkeys(evidence.weights, sparsity)
        masks, weights = score.step(evidence, shares, c.unit_shape if c.unit == "n:m" else None)
        state = replace(state, weights={**state.weights, **weights})
    else:
        scores = _combined(folded, evidence, plan)
        masks = _selected(scores, sparsity, state, plan, evidence)
    return pruned(state, plan, {**state.masks, **masks})


def united(state: State, plan: Plan, votes: Tensor) -> State:
    """The state under one mask again, after the clients tuned under masks of their own."""
    c, sparsity = plan.config, plan.sparsity(state.round)
    weights = {n: state.weights[n] for n in state.masks}

    def choose(scores: Tensors) -> Masks:
        wanted = Wanted(sparsity, c.scope, plan.progress(state.round))
        return chosen(scores, wanted, c, plan.layout, state.masks, weights)

    return pruned(state, plan, decided(c.masks, votes, weights, state.masks, choose))


def pruned(state: State, plan: Plan, masks: Masks) -> State:
    """The state under new masks: survivors as they are, or as they were in an early round."""
    c = plan.config
    early = state.early if c.rewind is not None else None
    weights = masked(state.weights if early is None else early, masks)
    return replace(state, masks=masks, weights=weights, owed=False)


def _combined(folded: Folded, evidence: Evidence, plan: Plan) -> Tensors:
    """One score for every weight asked about, from the pooled sums or from the clients' own."""
    c = plan.config
    score, combine = scores_of(c.plugin)[c.score], COMBINES[c.combine]
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
        assert folded.votes is not None  # the form wants them
        shapes = {n: w.shape for n, w in evidence.weights.items()}
        return replace(form, shapes=shapes).named(folded.votes.double())
    assert folded.total is not None
    if combine.merge is None:
        return form.named(folded.total / folded.weight)
    assert folded.singles is not None
    return form.named(combine.merge(folded.singles, c.trim or 0.0))


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
    now = sparsity_of(state.masks)
    cost, target = _cost(state, plan)
    n = sum(m.numel() for m in state.masks.values())
    key = "target-bytes" if c.target_bytes is not None else "target-flops"
    final = sparsity_for(cost, at, target, now, n, key=key)
    return at(max(now, progress * final))


def _cost(state: State, plan: Plan) -> tuple[Callable[[Masks], float], float]:
    """What a mask costs and what it may cost: bytes of the coded file, or a part of the FLOPs."""
    c = plan.config
    if c.target_bytes is not None:
        frozen = {} if plan.model is None else frozen_of(plan.model)
        weights = {**state.weights, **frozen}
        return lambda masks: coded_size(c, weights, masks), float(c.target_bytes)
    assert c.target_flops is not None  # one of the four ways to say how much
    dense = flops(full_masks(state.weights, state.masks), plan.positions)
    return lambda masks: flops(masks, plan.positions) / dense, c.target_flops


def _exchanged(state: State, bench: Bench) -> tuple[State, Notes]:
    """Prune and regrow at constant density: drop by the score, grow by the pooled gradient."""
    plan, c = bench.plan, bench.plan.config
    state, folded, evidence = _asked(state, bench, (), None)
    if evidence is None:
        return replace(state, owed=True), Notes()
    question = bench.question(state, "score", score="gradient", dense=True)
    state, grown = bench.put(state, question, bench.cohort)
    if len(grown.answered) < c.min_clients or grown.total is None:
        return replace(state, owed=True), Notes()
    gradient = form_of(question, c, plan.layout).named(grown.total)
    step, steps = plan.exchange_step(state.round)
    masks = exchange(
        state.masks,
        _combined(folded, evidence, plan),
        {n: g.abs() for n, g in gradient.items()},
        exchange_fraction(c.regrow or 0.0, step, steps),
        scope=c.scope,
        magnitude={n: w.abs() for n, w in evidence.weights.items()},
        floor=c.floor,
    )
    moved = sum(int((masks[n] & ~m).sum()) for n, m in state.masks.items())
    notes = replace(_noted(folded, evidence, plan), exchanged=moved)
    return pruned(state, plan, masks), notes


def _noted(folded: Folded, evidence: Evidence, plan: Plan) -> Notes:
    c = plan.config
    own, error = folded.totals.get("own"), scores_of(c.plugin)[c.score].error
    return Notes(
        agreement_of(folded),
        folded.totals["overlap"] / own if own else None,
        None if error is None else _relative(error(evidence), evidence, plan),
    )


def _relative(errors: Tensors, evidence: Evidence, plan: Plan) -> float | None:
    """The median over alive weights of |standard error / score|; None where no score is not 0."""
    c = plan.config
    scores = scores_of(c.plugin)[c.score].finalise(evidence)
    parts = [(errors[n] / s.abs())[evidence.masks[n] & (s != 0)] for n, s in scores.items()]
    flat = torch.cat(parts)
    return float(flat.median()) if flat.numel() else None


def agreement_of(evidence: Folded) -> float | None:
    """How much two clients' own masks share on average: Σ c_j (c_j - 1) / (K (K-1) k).

    c_j counts the clients that vote to keep weight j, K clients voted, each for k weights. None
    where fewer than two voted. Unlike a mean over pairs it needs only the sum of the votes.
    """
    votes, voters = evidence.votes, len(evidence.answered)
    if votes is None or voters < 2:
        return None
    each = int(votes.sum()) / voters
    if not each:
        return None
    return int((votes * (votes - 1)).sum()) / (voters * (voters - 1) * each)
