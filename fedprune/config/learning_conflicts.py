"""Choices about how clients learn that contradict each other, or that nothing would read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedprune.learning.robust import ROBUST, most_byzantine
from fedprune.options.refusal import Conflict

if TYPE_CHECKING:
    from fedprune.config.schema import RunConfig

_OUT = "leave it out"


def refusals(c: RunConfig) -> list[Conflict]:
    """Every possible conflict of a configuration's learning, with whether it is one."""
    return [
        *_terms(c),
        *_rates(c),
        *_lessons(c),
        *_kept_change(c),
        *_fits(c),
        *_robust(c),
        *_bounded(c),
    ]


def _terms(c: RunConfig) -> list[Conflict]:
    single = c.unit in {"weight", "n:m"}
    shrunk = c.l1 > 0 or c.group_lasso > 0
    return [
        (
            "group-lasso",
            c.group_lasso > 0 and single,
            f"unit {c.unit} has no groups of weights",
            "--l1, or another --unit",
        ),
        (
            "shrinkage",
            c.shrinkage is not None and not shrunk,
            "neither l1 nor group-lasso is above 0",
            _OUT,
        ),
    ]


def _rates(c: RunConfig) -> list[Conflict]:
    level = c.lr_schedule == "constant"
    return [
        ("lr-rewind", c.lr_rewind and level, "the learning rate is constant", "false"),
        ("lr-rewind", c.lr_rewind and c.sparsity == 0.0, "nothing is pruned", "false"),
    ]


def _lessons(c: RunConfig) -> list[Conflict]:
    inside = {"distil-hidden": c.distil_hidden, "distil-attention": c.distil_attention}
    heaviest = max(["distil", *inside], key=lambda key: {"distil": c.distil, **inside}[key])
    none = not c.distil and not any(inside.values())
    unseen = "a compiled model is not watched"
    idle = "nothing is distilled"
    return [
        (
            heaviest,
            not none and c.sparsity == 0.0 and not c.reduce and not c.teacher,
            "nothing is pruned, so that there is no model from before",
            "--teacher, or 0",
        ),
        *[(key, weight > 0 and c.compile, unseen, "0") for key, weight in inside.items()],
        (
            "distil-attention",
            c.distil_attention > 0 and c.checkpointing,
            "attention that is computed twice is not kept",
            "0",
        ),
        ("temperature", c.temperature is not None and not c.distil, "distil is 0", _OUT),
        ("distil-schedule", none and c.distil_schedule != "constant", idle, "constant"),
        ("teacher", none and bool(c.teacher), idle, "leave it out, or --distil"),
    ]


def _kept_change(c: RunConfig) -> list[Conflict]:
    grid, idle = c.blend_grid or (), c.blend == "none"
    apart = "clients end under masks of their own"
    return [
        ("blend-grid", idle and c.blend_grid is not None, "blend is none", _OUT),
        (
            "blend-grid",
            not idle and 1.0 not in grid,
            "the whole change is not in it",
            "1 and others",
        ),
        ("blend-grid", not all(0 <= share <= 2 for share in grid), "not shares", "0 to 2"),
        ("blend-grid", not idle and len(grid) == 1, "there is nothing to choose", "1 and others"),
        ("blend", not idle and c.masks != "global", apart, "none"),
        (
            "moving",
            c.moving == "swa" and c.end >= c.rounds,
            "the last pruning leaves one round to average",
            "ema, or an earlier --end",
        ),
        (
            "moving-decay",
            c.moving != "ema" and c.moving_decay is not None,
            f"moving is {c.moving}",
            _OUT,
        ),
    ]


def _fits(c: RunConfig) -> list[Conflict]:
    wanted, late = c.reconstruct is not None, "the mask is decided after tuning"
    whole = c.unit not in {"weight", "n:m", "block", "column"}
    return [
        (
            "reconstruct",
            c.reconstruct == "inputs" and whole,
            f"of unit {c.unit} the outputs go, and what stays reads nothing that is missing",
            "outputs",
        ),
        ("reconstruct", wanted and c.sparsity == 0.0, "nothing is pruned", _OUT),
        ("reconstruct", wanted and c.rewind is not None, "what stays goes back to a round", _OUT),
        ("reconstruct", wanted and c.schedule == "regrow", "what grows back starts at 0", _OUT),
        ("reconstruct", wanted and c.masks != "global", late, "leave it out, or --masks global"),
        (
            "reconstruct",
            wanted and c.score_during == "tune",
            late,
            "leave it out, or --score-during pass",
        ),
    ]


def _robust(c: RunConfig) -> list[Conflict]:
    """What a rule that looks at changes one by one does not go together with."""
    on, needs, f = c.robust != "none", ROBUST[c.robust].needs, c.byzantine or 0
    most, least = (most_byzantine(needs, c.cohort), needs(f)) if needs else (0, 0)
    small = needs is not None and most < 1
    return [
        (
            "robust",
            on and c.masks != "global",
            "clients end under masks of their own, and their changes are of different weights",
            "none, or --masks global",
        ),
        (
            "robust",
            on and c.error_feedback,
            "what was kept back is made up for in a mean, and no client's change is sure to count",
            "none, or no --error-feedback",
        ),
        (
            "weighting",
            on and c.weighting != "equal",
            "every client counts alike under --robust: how many labels it has is its own word",
            "equal",
        ),
        (
            "robust",
            small,
            f"a cohort of {c.cohort} is too small to leave one out",
            f"another rule, or --cohort {needs(1) if needs else 0} or more",
        ),
        ("byzantine", not needs and c.byzantine is not None, f"robust is {c.robust}", _OUT),
        (
            "byzantine",
            needs is not None and f > most,
            f"too many for a cohort of {c.cohort}",
            f"1 to {most}",
        ),
        (
            "min-clients",
            needs is not None and c.min_clients < least,
            f"{c.robust} with byzantine={f} needs more",
            f"{least} to {c.cohort}",
        ),
    ]


def _bounded(c: RunConfig) -> list[Conflict]:
    return [
        (
            "max-norm",
            isinstance(c.max_norm, float) and not c.max_norm > 0,
            "no change has such a norm",
            "above 0, or auto",
        ),
        (
            "max-norm",
            c.max_norm == "auto" and c.lr_rewind,
            "norms rise again at every pruning",
            "a number, or no --lr-rewind",
        ),
    ]
