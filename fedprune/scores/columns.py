"""Scores that are means of what clients summed, or of a weight and what goes into its column."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedprune.scores.input_sums import mean_inputs
from fedprune.scores.score import Evidence
from fedprune.structure.layout import as_rows, from_rows
from fedprune.tensors.named import Tensors


def wanda(evidence: Evidence) -> Tensors:
    """|w_ij|·sqrt(mean x_j²), Sun et al. 2023, arXiv 2306.11695, eq. 1.

    There the norm of x_j over all rows stands for the root of the mean: the same in every
    comparison within a tensor. A mean of squares that noise brought below 0 counts as 0.
    """
    return _by_column(evidence, lambda w, mean: w.abs() * mean.clamp_min(0.0).sqrt())


RIA_POWER = 0.5  # The power a of the inputs' norm in RIA, as its authors set it


def ria(evidence: Evidence) -> Tensors:
    """(|w_ij| / Σ_i |w_ij| + |w_ij| / Σ_j |w_ij|)·(mean x_j²)^(a/2), a = 0.5.

    Zhang et al. 2024 (Plug-and-Play, ICLR), eq. 3 and 4: the weight relative to its input's and its
    output's weights, so that no row or column goes as a whole, times ‖x_j‖₂^a. Weights that were
    removed are 0 in the sums.
    """
    return _by_column(evidence, _relative)


def _relative(w: Tensor, mean: Tensor) -> Tensor:
    size = w.abs()
    tiny = torch.finfo(size.dtype).tiny  # of a row or column of zeros all is 0
    share = size / size.sum(0, keepdim=True).clamp_min(tiny)
    share += size / size.sum(1, keepdim=True).clamp_min(tiny)
    return share * mean.clamp_min(0.0).pow(RIA_POWER / 2)


def wanda_by_row(evidence: Evidence) -> Tensors:
    """The rank of Wanda's score among what is alive in its row, over how many that are, in (0, 1].

    Equal scores share the mean of their ranks. Sun et al. 2023, arXiv 2306.11695, sect. 3, compare
    within an output; so ranked, rows lose alike, and a tensor still loses exactly its number.
    """
    scores = wanda(evidence)
    for name, score in scores.items():
        rows = as_rows(evidence.layout, name, score)
        alive = as_rows(evidence.layout, name, evidence.masks[name])
        ranked = _row_ranks(rows, alive)
        scores[name] = from_rows(evidence.layout, name, ranked).contiguous()
    return scores


def _row_ranks(rows: Tensor, alive: Tensor) -> Tensor:
    values = rows.masked_fill(~alive, -math.inf)
    order, gone = values.sort(dim=1).values, (~alive).sum(1, keepdim=True)
    first = torch.searchsorted(order, values)
    last = torch.searchsorted(order, values, right=True)
    rank = (first + last + 1).double() / 2 - gone
    return (rank / (rows.shape[1] - gone).clamp(min=1)).masked_fill(~alive, 0.0)


def by_input(evidence: Evidence) -> Tensors:
    """The mean of its input channel, for every weight."""
    return _by_column(evidence, lambda w, mean: mean.expand_as(w))


def _by_column(evidence: Evidence, score: Callable[[Tensor, Tensor], Tensor]) -> Tensors:
    scores: Tensors = {}
    for name, w in evidence.weights.items():
        rows = as_rows(evidence.layout, name, w.double())
        scored = score(rows, mean_inputs(evidence, name))
        scores[name] = from_rows(evidence.layout, name, scored).contiguous()
    return scores


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
