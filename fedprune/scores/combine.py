"""How the clients' evidence becomes one score: the pooled statistic, or their own scores.

``sum`` adds statistics and scores the pooled evidence. Every other rule has each client finalise
its own statistics into a score of its own, transforms it, and adds those up, weighted by labels;
the robust rules look at the clients' scores one by one, which is more than a sum and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.options.plugins import table_in

Merge = Callable[[Tensor, float], Tensor]
"""From the clients' scores, (clients, values) float32, and the trim, to one score, float64."""


@dataclass(frozen=True)
class Combine:
    """One way to combine clients."""

    summary: str  # one line for ``--list``
    source: str  # where it is from
    # statistics are summed and scored afterwards; otherwise each client scores
    pooled: bool = False
    valued: bool = True  # clients send their (transformed) scores; votes alone otherwise
    # what a client does to its own scores before it sends them
    transform: Callable[[Tensor], Tensor] = lambda flat: flat
    # from the scores one by one; None: their weighted mean, which needs only the sum
    merge: Merge | None = None
    # between which numbers what a client sends lies
    within: tuple[float, float] = (-math.inf, math.inf)


def ranks(flat: Tensor) -> Tensor:
    """Rank / n in (0, 1], the highest score 1; equal scores share the mean of their ranks."""
    values, inverse, counts = torch.unique(flat, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    means = ends - (counts.double() - 1) / 2
    assert values.numel() == means.numel()
    out: Tensor = (means / max(1, flat.numel()))[inverse]
    return out


def l1_normalised(flat: Tensor) -> Tensor:
    """Divided by its sum of absolute values, unless that is 0."""
    size = flat.double().abs().sum()
    return flat.double() / size if size > 0 else flat.double()


def _median(scores: Tensor, _trim: float) -> Tensor:
    """The mean of the two middle values where their number is even."""
    ordered: Tensor = scores.double().sort(dim=0).values
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _trimmed_mean(scores: Tensor, trim: float) -> Tensor:
    """Yin et al. 2018, arXiv 1803.01498, definition 2: floor(trim * n) left out at either end.

    Departure: one at least, where there are three clients or more.
    """
    n = len(scores)
    out = max(math.floor(trim * n), 1 if n >= 3 else 0)
    ordered: Tensor = scores.double().sort(dim=0).values
    middle: Tensor = ordered[out : n - out]
    return middle.mean(dim=0)


def _clipped_mean(scores: Tensor, _trim: float) -> Tensor:
    """Scaled down to the median norm where larger, then averaged.

    Sun et al. 2019, arXiv 1911.07963, section 4 (norm thresholding), with the cohort's median norm
    as the threshold.
    """
    double = scores.double()
    norms: Tensor = torch.linalg.vector_norm(double, dim=1)
    factors = (_median(norms.unsqueeze(1), 0.0) / norms.clamp_min(1e-300)).clamp_max(1.0)
    return (double * factors.unsqueeze(1)).mean(dim=0)


COMBINES: dict[str, Combine] = {
    "sum": Combine(
        "statistics added up, then scored: equals the pooled score if they are additive",
        "design of fedprune; for gradients, arXiv 1602.05629 (FedSGD)",
        pooled=True,
    ),
    "mean": Combine("mean of the clients' own scores, by labels", "the plain average"),
    "mean-absolute": Combine(
        "mean of the absolute values of the clients' own scores; as mean, if none is negative",
        "SSFL, Flower baseline (mean of |w·g|)",
        transform=torch.abs,
        within=(0.0, math.inf),
    ),
    "second-moment": Combine(
        "mean of the squares of the clients' own scores, by labels",
        "PruneFL, Jiang et al. 2022, arXiv 1909.12326 (squares of gradients)",
        transform=torch.square,
        within=(0.0, math.inf),
    ),
    "votes": Combine(
        "number of clients whose own mask keeps the weight",
        "FedPrLLM, Guo et al. 2025, arXiv 2505.13547",
        valued=False,
    ),
    "rank-mean": Combine(
        "mean of the ranks of the clients' own scores, by labels",
        "Borda count",
        transform=ranks,
        within=(0.0, 1.0),
    ),
    "median": Combine(
        "coordinate-wise median of the clients' own scores (one by one, no secure sum)",
        "Yin et al. 2018, arXiv 1803.01498, definition 1",
        merge=_median,
    ),
    "trimmed-mean": Combine(
        "coordinate-wise mean without the --trim part, one at least, at either end (one by one)",
        "Yin et al. 2018, arXiv 1803.01498, definition 2",
        merge=_trimmed_mean,
    ),
    "clipped-mean": Combine(
        "mean after clipping each client's norm at the median of the norms (one by one)",
        "Sun et al. 2019, arXiv 1911.07963, section 4",
        merge=_clipped_mean,
    ),
}

NORMALISE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda flat: flat,
    "l1": l1_normalised,
    "rank": ranks,
}

NORMALISE_SUMMARIES = {
    "none": "unchanged: a client with ten times the scale has ten times the weight",
    "l1": "divided by the sum of their absolute values: every label has the same weight",
    "rank": "replaced by rank / n (only for combinations of clients' own scores)",
}


def combines_of(plugin: str) -> dict[str, Combine]:
    """Every way to combine by name; a plug-in's (its table ``COMBINES``) come last."""
    return {**COMBINES, **table_in(plugin, "COMBINES", Combine)}
