"""Choices about clients' evidence that contradict each other: how it is collected, whose counts."""

from __future__ import annotations

from fedprune.config.sections import AllOptions
from fedprune.learning.options import trains
from fedprune.options.conditions import Not, only
from fedprune.options.refusal import Conflict
from fedprune.scores.combine import combines_of
from fedprune.scores.score import Score, weight_shapes
from fedprune.selection.scopes import scope_fits

_ALONE = ("layer", "row", "column")
"""Scopes under which a tensor is pruned whatever the others are."""

WITHIN_TENSOR = ("weight", "n:m", "block", "row", "column")
"""Units that lie in one tensor."""


def evidence_conflicts(c: AllOptions, score: Score) -> list[Conflict]:
    """Every possible conflict of how clients' evidence is collected, and whose counts."""
    return [
        *_while_tuning(c, score),
        *_by_block(c, score),
        *_in_sequence(c, score),
        *_behind_its_own(c, score),
        *_who_is_scored(c, score),
        *_whose(c, score),
        *_own_masks(c, score),
    ]


def _while_tuning(c: AllOptions, score: Score) -> list[Conflict]:
    if c.score_during != "tune":
        return only(c, score.tuning, f"score {c.score} is collected by tuning", score_during="tune")
    able = len(score.asks) == 1 and score.asks[0].watch is not None
    one = "what is collected while tuning is summed, once a round"
    return [
        *only(c, not able, f"score {c.score} needs a pass of its own", score_during="pass"),
        *only(c, True, one, combine="sum", normalise="none", score_steps=1, schedule=Not("regrow")),
        *only(c, True, "its cost is measured in a pass", score_wire="fp32"),
        *only(c, True, "a compiled model is not watched", compile=False),
    ]


def _by_block(c: AllOptions, score: Score) -> list[Conflict]:
    """Gradients a block at a time: of weights that nobody trains, and summed in a pass."""
    able = bool(score.asks) and all(ask.by_block for ask in score.asks)
    whole = trains(c) and c.adapters == "none"
    reasons = {
        "nothing is pruned": c.sparsity == 0.0,
        f"score {c.score} sums no gradients of weights": not able,
        "clients train all weights (--local-steps 0 or --adapters are without)": whole,
        "statistics are collected while tuning": c.score_during == "tune",
        "--dp example holds the gradients of whole examples to a norm": c.dp == "example",
        "--batched computes clients at once": c.batched > 1,
    }
    why = next((reason for reason, holds in reasons.items() if holds), "")
    return only(c, bool(why), why, gradient_blocks=False)


def _in_sequence(c: AllOptions, score: Score) -> list[Conflict]:
    if c.calibration == "dense":
        return []
    why, free = "blocks are pruned one after the other", c.unit != "n:m"
    collected = c.score_during == "tune"
    return [
        *only(c, not score.asks, f"score {c.score} asks no client", calibration="dense"),
        *only(c, collected, "there is no pass to repeat", calibration="dense"),
        *only(c, free, why, scope=_ALONE),
        *only(c, free and c.vote_scope is not None, why, vote_scope=_ALONE),
        *only(c, True, why, unit=WITHIN_TENSOR),
        ("sparsity", c.sparsity is None, why, "a number"),
        *only(c, True, why, score_steps=1, schedule=Not("regrow")),
    ]


def _behind_its_own(c: AllOptions, score: Score) -> list[Conflict]:
    """Calibration behind what a client prunes itself: only its mask may depend on that."""
    if c.calibration != "local":
        return []
    shared = c.combine != "votes" and c.masks == "global"
    ways = "dense, sequential, or --combine votes, or --masks union, intersection"
    twice = len(score.asks) > 1
    return [
        ("calibration", shared, "clients have no masks of their own", ways),
        *only(c, twice, f"score {c.score} needs two questions", calibration="dense"),
        *only(c, True, "no statistics travel", score_wire="fp32"),
    ]


_RATE = "noise is accounted for a round's cohort and for everyone"


def _who_is_scored(c: AllOptions, score: Score) -> list[Conflict]:
    """Whom a score is asked of, on how many examples, and how much each client counts."""
    reasons = {
        f"score {c.score} asks no client": not score.asks,
        "nothing is pruned": c.sparsity == 0.0,
        "statistics are collected while tuning": c.score_during == "tune",
    }
    why = next((reason for reason, holds in reasons.items() if holds), "")
    own = "" if c.masks == "global" else "clients prune by themselves, as they tune"
    rule = combines_of(c.plugin)[c.combine]
    n, most = c.score_cohort, c.clients - c.newcomers - c.panel
    number = isinstance(n, int)
    some = isinstance(n, int) and not c.min_clients <= n <= most
    few = f"at least min-clients={c.min_clients} have to answer, and {most} train"
    weighted = rule.valued and not rule.pooled and rule.merge is None
    unweighted = f"combine {c.combine} weights no client's score"
    return [
        *only(c, bool(why or own), why or own, score_cohort="cohort"),
        ("score-cohort", some, few, f"cohort, all, {c.min_clients} to {most}"),
        *only(c, number and c.dp != "none", _RATE, score_cohort=("cohort", "all")),
        *only(c, bool(why), why, score_examples=None),
        *only(c, not weighted, unweighted, score_weighting=c.weighting),
    ]


def _whose(c: AllOptions, score: Score) -> list[Conflict]:
    nobody = f"score {c.score} asks no client"
    silent, votes = not score.asks, c.combine == "votes"
    pooled = combines_of(c.plugin)[c.combine].pooled
    raw = pooled and bool(score.asks) and score.asks[-1].shapes is not weight_shapes
    scaleless = c.combine in {"votes", "rank-mean"}
    apart = scope_fits(c.vote_scope or c.scope, c.scope) if votes else ""
    ranked, scaled = pooled and c.normalise == "rank", raw and c.normalise == "l1"
    sums = f"what score {c.score} sums are not scores yet"
    costly = c.score_wire != "fp32" and (c.sparsity is None or not c.agreement)
    overlap = "the overlap it costs is measured on clients' masks"
    return [
        *only(c, silent, nobody, combine="sum", normalise="none", score_wire="fp32"),
        *only(c, c.sparsity is None, "clients vote at a sparsity", combine=Not("votes")),
        *only(c, scaleless, f"{c.combine} does not depend on the scale", normalise="none"),
        ("normalise", ranked, "ranks are of clients' own scores", "none, l1, or --combine mean"),
        ("normalise", scaled, sums, "none, or --combine mean"),
        ("vote-scope", bool(apart), apart, c.scope),
        ("score-wire", costly, overlap, "fp32, or a sparsity and --agreement"),
    ]


def _own_masks(c: AllOptions, score: Score) -> list[Conflict]:
    if c.masks == "global":
        return []
    why = "clients prune by themselves, before they tune"
    same = f"score {c.score} gives every client"
    return [
        *only(c, not score.asks, f"{same} the same mask", masks="global"),
        *only(c, not c.sparsity, "clients prune to a sparsity", masks="global"),
        *only(c, True, why, combine="sum", normalise="none", score_during="pass", score_steps=1),
        *only(c, True, why, calibration=("dense", "local"), schedule=Not("regrow")),
        *only(c, True, "no statistics travel", score_wire="fp32"),
    ]
