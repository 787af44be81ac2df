"""Options of what is redundant."""

from __future__ import annotations

from typing import Any, Literal

from fedprune.options.conditions import Not
from fedprune.options.name_table import NameTable
from fedprune.options.option import option
from fedprune.options.section import Section

REDUCTIONS = {
    "dead": "take out units that no layer reads or that are never active on the cohort's clients",
    "merge": "merge neurons with equal incoming weights, and heads that one head can compute",
    "share": "one matrix for layers whose matrices are equal",
    "slice": "remove channels between a decoder's layers, in the "
    "basis of their principal directions",
    "low-rank": "replace a matrix by two factors where these hold fewer numbers",
}

RANK_BY = {
    "activations": "least error on the clients' inputs [SVD-LLM, Wang et al. 2024, 2403.07378]",
    "weights": "least error of the matrix itself, the truncated SVD; asks no client",
}

_LOW_RANK = {"reduce": "low-rank"}


def _round(c: Any) -> int:
    """After the last pruning, if a round is left; where nothing is pruned, after the warm-up."""
    return int(c.warmup + 1 if c.sparsity == 0.0 else min(c.end + 1, c.rounds))


class Reduction(Section):
    """What is redundant, and goes; and what stays, fitted."""

    reconstruct: str | None = option(
        "pruning",
        "refit the kept weights by least squares after each pruning",
        when={"sparsity": Not(0.0)},
        names=NameTable("fedprune.redundancy.reconstruction", "RECONSTRUCTIONS"),
    )
    quantise_by: str | None = option(
        "redundancy",
        "sums of the final model's inputs to collect, for fedprune export --quantise-by",
        names=NameTable("fedprune.redundancy.calibration", "CALIBRATIONS"),
    )
    reduce: tuple[Literal["dead", "merge", "share", "slice", "low-rank"], ...] = option(
        "redundancy", "redundancy to remove, in one round", (), names=REDUCTIONS, strict=False
    )
    reduce_round: int | None = option(
        "redundancy",
        "the round that removes it (default: after the last pruning, if one is left)",
        when={"reduce": Not(())},
        derived=_round,
        ge=1,
    )
    reduce_within: float | None = option(
        "redundancy",
        "relative distance within which neurons merge and matrices are shared (default 0: equal)",
        when={"reduce": ("merge", "share")},
        ge=0,
        lt=1,
    )
    slice_part: float | None = option(
        "redundancy",
        "largest part of the channels between layers to remove (default 0.2)",
        when={"reduce": "slice"},
        derived=lambda _: 0.2,
        ge=0,
        lt=1,
    )
    rank_by: Literal["activations", "weights"] | None = option(
        "redundancy",
        "error that the low-rank factors minimise",
        "activations",
        when=_LOW_RANK,
        names=RANK_BY,
    )
    rank_energy: float | None = option(
        "redundancy",
        "part of the energy that a factored matrix keeps (default 0.95)",
        when=_LOW_RANK,
        derived=lambda c: 0.95 if c.rank_budget is None and c.rank_tolerance is None else None,
        gt=0,
        le=1,
    )
    rank_budget: float | None = option(
        "redundancy",
        "part of the kept weights that all matrices hold after factoring",
        when=_LOW_RANK,
        gt=0,
        lt=1,
    )
    rank_tolerance: float | None = option(
        "redundancy",
        "choose the smallest such part with which the validation loss rises by at most this part",
        when=_LOW_RANK,
        ge=0,
    )
