"""Options of scores, and of combining them."""

from __future__ import annotations

from typing import Any, Literal

from fedprune.options.name_table import NameTable
from fedprune.options.option import Count, option
from fedprune.options.section import Section
from fedprune.selection.options import followed_method


class Scoring(Section):
    """How important a weight is, and who is asked."""

    score: str = option(
        "pruning",
        "importance of a weight",
        "taylor",
        names=NameTable("fedprune.scores.catalog", "SCORES", "scores_of"),
    )
    score_steps: Count = option(
        "pruning", "times a pruning scores and removes, a little each time", 1
    )
    score_during: Literal["pass", "tune"] = option(
        "pruning", "statistics from a pass of their own, or collected while tuning", "pass"
    )
    calibration: Literal["dense", "sequential", "local"] = option(
        "pruning",
        "dense: score all layers at once; sequential: block by block behind pruned ones; local: "
        "each client behind what it prunes itself, for votes and for --masks of their own",
        "dense",
    )
    score_cohort: int | Literal["cohort", "all"] = option(
        "pruning",
        "who is asked for scores: the round's cohort, everyone who trains (all), or so many of "
        "them, drawn anew in every round",
        "cohort",
    )
    score_examples: int | None = option(
        "pruning",
        "training examples that a client draws to be scored on (default: all it has)",
        ge=1,
    )
    gradient_blocks: bool = option(
        "pruning",
        "scores from gradients of a model whose weights are frozen: a block's gradients at a time, "
        "each block computed twice",
        False,
    )
    probes: int | None = option(
        "pruning",
        "random perturbations of a score that takes some (default 64)",
        ge=2,
        le=100_000,
    )


def _agreement(c: Any) -> bool:
    """Not of models from files: as many bits a client as they have weights, for one figure."""
    from fedprune.structure.families.catalog import SMALL_MODELS
    from fedprune.tasks.catalog import tasks_of

    large = tasks_of(c.plugin)[c.task].paths and bool(c.model) and c.model not in SMALL_MODELS
    # A method of another name may decide by the clients' own masks, and says so if it has none.
    needed = c.method != followed_method(c) or c.score_wire != "fp32"
    return c.dp == "none" and (needed or not large)


class Combining(Section):
    """How the clients' scores become one."""

    combine: str = option(
        "combining",
        "how clients' scores become one",
        "sum",
        names=NameTable("fedprune.scores.combine", "COMBINES", "combines_of"),
    )
    trim: float | None = option(
        "combining",
        "part that is left out at either end",
        0.1,
        when={"combine": "trimmed-mean"},
        gt=0,
        lt=0.5,
    )
    vote_scope: str | None = option(
        "combining",
        "scope of the clients' own masks when they vote (default: --scope)",
        when={"combine": "votes"},
        names=NameTable("fedprune.selection.scopes", "SCOPES"),
    )
    score_weighting: Literal["labels", "equal"] = option(
        "combining",
        "weight of a client in means of clients' own scores (default: as --weighting)",
        "labels",
        derived=lambda c: c.weighting,
    )
    normalise: str = option(
        "combining",
        "what each client does to its scores first",
        "none",
        names=NameTable("fedprune.scores.combine", "NORMALISE_SUMMARIES"),
    )
    agreement: bool = option(
        "combining",
        "clients also send their own mask as votes, to measure agreement (default: without "
        "--dp, of models that are not read from files)",
        True,
        derived=_agreement,
    )
