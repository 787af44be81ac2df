"""What a comparison of ways to prune should have, and these runs lack."""

from __future__ import annotations

from collections.abc import Sequence

from fedprune.methods.catalog import FOLLOWING
from fedprune.report.reading import arms
from fedprune.study.design import SEED
from fedprune.study.outcomes import StudyOutcome

_SEEDS = 3
"""Fewer give a spread that says little."""


def lacking(outcomes: Sequence[StudyOutcome]) -> list[str]:
    """Of what Blalock et al. 2020 (arXiv 2003.03033, ShrinkBench) ask for, what is not there.

    Several amounts of pruning, repetitions, and a random mask and magnitude as baselines. That
    runs of a seed begin with the same weights, and what they send and compute, is always so.
    """
    runs = [o.run for o in outcomes if o.run is not None]
    pruned = {run.summary.get("sparsity_asked") for run in runs} - {0.0, None}
    plain = {run.config.get("score") for run in runs if run.config.get("method") in FOLLOWING}
    beside = plain.union(*(arms(run.rows) for run in runs))
    found = {
        "several sparsities": len(pruned) < 2,
        "three seeds": len({o.labels.get(SEED) for o in outcomes}) < _SEEDS,
        "a random mask": "random" not in beside,
        "magnitude": "magnitude" not in beside,
    }
    return [what for what, lacks in found.items() if lacks and pruned]
