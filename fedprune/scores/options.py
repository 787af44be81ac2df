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
        "pruning", "steps of one pruning: each scores again and removes a part", 1
    )
    score_during: Literal["pass", "tune"] = option(
        "pruning",
        "pass: statistics are computed in a pass of their own; tune: collected while clients train",
        "pass",
    )
    calibration: Literal["dense", "sequential", "local"] = option(
        "pruning",
        "dense: score all layers of the unpruned model at once; sequential: block by block, on "
        "inputs from pruned blocks; local: each client on inputs from what it has pruned "
        "itself, for votes and for --masks union or intersection",
        "dense",
    )
    score_cohort: int | Literal["cohort", "all"] = option(
        "pruning",
        "clients that score: cohort (the round's), all (everyone who trains), or a number of "
        "them, drawn anew each round",
        "cohort",
    )
    score_examples: int | None = option(
        "pruning", "training examples that a client draws to score on (default: all)", ge=1
    )
    gradient_blocks: bool = option(
        "pruning",
        "for frozen weights: compute gradients one block at a time, which takes less memory and "
        "computes each block twice",
        False,
    )
    probes: int | None = option(
        "pruning", "random perturbations of scores that use them (default 64)", ge=2, le=100_000
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
        "part that is left out at each end",
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
        "weights of clients in means of their scores (default: as --weighting)",
        "labels",
        derived=lambda c: c.weighting,
    )
    normalise: str = option(
        "combining",
        "how each client scales its own scores before they are combined",
        "none",
        names=NameTable("fedprune.scores.combine", "NORMALISE_SUMMARIES"),
    )
    agreement: bool = option(
        "combining",
        "clients also send their own mask as votes, to measure how far they agree (default: "
        "without --dp, for models that are not read from files)",
        True,
        derived=_agreement,
    )
