"""Options of what is redundant."""

from __future__ import annotations

from typing import Literal

from fedprune.options.section import Section, option


class Reduction(Section):
    """What is redundant, and goes."""

    reduce: tuple[Literal["dead", "merge", "share", "low-rank"], ...] = option(
        "redundancy", "what to take out once: dead, merge, share, low-rank", (), strict=False
    )
    reduce_round: int | None = option(
        "redundancy",
        "the round that does (default: after the last pruning, if one is left)",
        None,
        ge=1,
    )
    reduce_within: float | None = option(
        "redundancy",
        "relative distance within which neurons merge and matrices are shared (default 0: equal)",
        None,
        ge=0,
        lt=1,
    )
    rank_by: Literal["activations", "weights"] | None = option(
        "redundancy", "whose error factors make least (see --list; default activations)", None
    )
    rank_energy: float | None = option(
        "redundancy",
        "part of its energy that a factored matrix keeps (default 0.95)",
        None,
        gt=0,
        le=1,
    )
    rank_budget: float | None = option(
        "redundancy",
        "part of the kept weights that factors and other matrices hold",
        None,
        gt=0,
        lt=1,
    )
    rank_tolerance: float | None = option(
        "redundancy",
        "smallest such part with which the loss on validation rises by at most this part",
        None,
        ge=0,
    )
