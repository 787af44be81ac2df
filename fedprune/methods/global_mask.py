"""One mask for all: ask for statistics, score every weight, decide, then train under the mask."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedprune.config import RunConfig
from fedprune.config.streamed import waits
from fedprune.methods.biases import with_biases
from fedprune.methods.method import Method
from fedprune.methods.scored import check_seen, scored, votes_by_tensor
from fedprune.methods.tuning import TOO_FEW, tuned
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.choice import Wanted, chooses_apart, chosen, chosen_apart, chosen_by
from fedprune.protocol.origin import coded_size
from fedprune.protocol.parts_asked import asked_at_once
from fedprune.scores.catalog import scores_of
from fedprune.scores.combine import combines_of
from fedprune.scores.score import Evidence, Score
from fedprune.selection.apart import counted_apart
from fedprune.selection.budget import OutOfReach, sparsest, sparsity_for
from fedprune.selection.schedules import steps_within
from fedprune.server.ask import asked, evidence_of
from fedprune.server.diagnostics import Notes, noted
from fedprune.server.plan import Plan
from fedprune.server.round import Round, Step, Talk
from fedprune.server.state import Model
from fedprune.streaming.filed import filed
from fedprune.streaming.packed import under_masks
from fedprune.structure.flops import flops
from fedprune.structure.groups import stages_of
from fedprune.structure.layout import Layout
from fedprune.tensors.lazy import joined_to, some_of
from fedprune.tensors.models import frozen_of
from fedprune.tensors.named import Masks, Tensors, count_kept


def thin(
    model: Model,
    memory: Any,
    r: Round,
    further: Callable[[Model, Aggregate, Evidence], Model] | None = None,
) -> Talk[Step]:
    """Score and prune, in as many steps and stages as the configuration says.

    `further`: what else the answers change of the pruned model.
    """
    notes = Notes()
    for sparsity in _steps(model, r):
        dense, parts = model, list[Tensors]()
        for names in _stages(r):
            seen = model if r.config.calibration == "sequential" else dense
            aggregate, evidence = yield from asked(seen, r, names, sparsity)
            if evidence is None:
                return Step(model, memory, undone=TOO_FEW)
            notes = noted(aggregate, evidence, r.plan)
            if names and waits(r.config):
                scores = scored(aggregate, evidence, r.plan)
                del aggregate, evidence
                parts.append(_part_of(scores, model, r, sparsity))
                continue
            pruned = decide(model, r, aggregate, evidence, sparsity)
            rest = (aggregate, evidence) if further or _makes_up(r.config) else None
            del aggregate, evidence  # sums in float64 are twice the weights that are copied now
            model = pruned()
            if rest:
                model, r = made_up(model, r, rest[1])
                model = further(model, *rest) if further else model
        if parts:
            model = _decided_by(functools.reduce(joined_to, parts), model, r, sparsity)
    return Step(model, memory, notes)


def _part_of(scores: Tensors, model: Model, r: Round, sparsity: float | None) -> Tensors:
    """What is kept of the scores of some tensors: their masks, or else they, in a file."""
    wanted = Wanted(sparsity, r.config.scope, r.plan.progress(r.number))
    if not _decides_at_once(wanted, r):
        return filed(scores)
    return chosen_apart(scores.__getitem__, wanted, r.config, r.layout, *_held(model, r), scores)


def _decided_by(parts: Tensors, model: Model, r: Round, sparsity: float | None) -> Model:
    """The model under the mask that is in parts, or that the scores give which wait in files."""
    wanted = Wanted(sparsity, r.config.scope, r.plan.progress(r.number))
    if _decides_at_once(wanted, r):
        return model.under(parts)
    if chooses_apart(wanted, r.config, r.layout):
        held = _held(model, r)
        return model.under(chosen_apart(parts.__getitem__, wanted, r.config, r.layout, *held))
    return model.under(_selected(parts, sparsity, model, r, evidence_of(model, r, ())))


def _decides_at_once(wanted: Wanted, r: Round) -> bool:
    """Whether the scores of some tensors are all that their masks depend on."""
    c = r.config
    return chooses_apart(wanted, c, r.layout) and counted_apart(c.unit, wanted.scope)


def _held(model: Model, r: Round) -> tuple[Masks, Tensors]:
    names = r.layout.prunable
    return some_of(model.masks, names), some_of(model.weights, names)


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
) -> Callable[[], Model]:
    """What gives the model under the mask that the evidence gives, and no longer holds that.

    Its weights too, where the score sets them.

    Raises:
        ConfigError: a layer that is scored by its inputs had none, or a score of the user's own
            gives what is no score.
    """
    c = r.config
    score = scores_of(c.plugin)[c.score]
    if score.step is not None:
        check_seen(evidence, c)
        assert sparsity is not None  # such a score has no threshold
        shares = dict.fromkeys(evidence.weights, sparsity)
        masks, weights = score.step(evidence, shares, c.unit_shape if c.unit == "n:m" else None)
        masks = joined_to(model.masks, masks)
        own = joined_to(model.weights, under_masks(weights, masks))
        stepped = replace(model, masks=masks, weights=own)
        return lambda: stepped
    found = _masks_apart(score, r, aggregate, evidence, sparsity)
    if found is None:
        scores = scored(aggregate, evidence, r.plan)
        found = _selected(scores, sparsity, model, r, evidence)
    return functools.partial(model.under, joined_to(model.masks, found))


def _makes_up(config: RunConfig) -> Callable[[Evidence, Masks], Tensors] | None:
    return scores_of(config.plugin)[config.score].makes_up


def made_up(model: Model, r: Round, evidence: Evidence) -> tuple[Model, Round]:
    """The pruned model with biases for what it lost, where the score says what they are."""
    makes_up = _makes_up(r.config)
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
        check_seen(evidence, c)
        votes = votes_by_tensor(aggregate, evidence, r.plan)
        return chosen_apart(votes, wanted, c, r.layout, evidence.masks, evidence.weights)
    if not ((combine.pooled or not score.asks) and score.apart):
        return None
    check_seen(evidence, c)
    return chosen_by(score, evidence, wanted, c, r.layout)


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
