"""Scores that are means of what clients summed, and those that ask no client."""

from __future__ import annotations

import torch
from torch import Tensor

from fedprune.scores.score import Evidence
from fedprune.tensors.named import Tensors


def mean_of_sums(evidence: Evidence) -> Tensors:
    """The mean of what was summed, over labels."""
    return {name: evidence.sums[name] / evidence.count for name in evidence.weights}


def mean_magnitude(evidence: Evidence) -> Tensors:
    """The size of the mean: |Σ / N|."""
    return {name: m.abs_() for name, m in mean_of_sums(evidence).items()}


def negative_mean(evidence: Evidence) -> Tensors:
    """The mean with its sign turned."""
    return {name: m.neg_() for name, m in mean_of_sums(evidence).items()}


def fisher(evidence: Evidence) -> Tensors:
    """½ w² Σ g² / N, the second-order change of the loss."""
    # Theis et al. 2018: the loss grows by 1/(2N) w² Σ g² when w goes.
    means = mean_of_sums(evidence)
    return {n: 0.5 * evidence.weights[n].double().square() * m for n, m in means.items()}


def magnitude(evidence: Evidence) -> Tensors:
    """|w|. Over larger units the pool makes it a norm: sum is L1, l2 is L2."""
    return {name: w.abs() for name, w in evidence.weights.items()}


def random_score(evidence: Evidence) -> Tensors:
    """The same numbers for what is left of a model that was cut as for the whole one."""
    layout, names = evidence.layout, evidence.weights.keys()

    def drawn(shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=evidence.generator, dtype=torch.float64)

    if layout.origin is None:
        return {name: drawn(layout.shapes[name]) for name in names}
    whole = layout.origin.layout
    draws = {name: drawn(whole.shapes[name]) for name in whole.prunable}
    return layout.from_origin({name: draws[name] for name in names})
