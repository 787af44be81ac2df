"""Training under trainable thresholds of rows: what SpaFL's clients do in a step.

Kim et al. 2024, arXiv 2406.00431: row i of a layer, whose weights make one output, is kept while
the mean of its |w| is above its threshold τ_i. In the backward pass the step function counts as the
identity, so that with g the gradient at the masked weights and s_i = Σ_j g_ij w_ij

    ∂τ_i = -s_i - λ exp(-τ_i),      ∂w_ij = g_ij [row i is kept] + s_i sign(w_ij) / n.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedprune.learning.manners import Manner
from fedprune.structure.layout import Layout, as_rows, from_rows
from fedprune.tensors.named import Tensors

FEW = 0.01
"""A layer of which no more rows are kept than this part begins with thresholds of 0 again."""


def rows_kept(weight: Tensor, threshold: Tensor) -> Tensor:
    """Flags of the rows (out, in) whose mean size is above their threshold, (out, 1)."""
    return weight.abs().mean(1, keepdim=True) > threshold[:, None]


def under_thresholds(weights: Tensors, thresholds: Mapping[str, Tensor], layout: Layout) -> Tensors:
    """The weights, 0.0 in the rows that thresholds remove; others are as they are."""
    out = dict(weights)
    for name, threshold in thresholds.items():
        rows = as_rows(layout, name, weights[name])
        out[name] = from_rows(layout, name, rows * rows_kept(rows, threshold)).contiguous()
    return out


def pulled(weight: Tensor, step: Tensor, per: int) -> Tensor:
    """Rows (out, in) after a global step of their thresholds: where one rose, its row shrinks.

    w_ij - step_i · sign(Σ_j w_ij) / per.
    """
    return weight - (step * weight.sum(1).sign() / per)[:, None]


def thresholded(
    named: Mapping[str, nn.Parameter],
    thresholds: dict[str, Tensor],
    layout: Layout,
    descent: tuple[float, float],
    penalty: float,
) -> Manner:
    """Steps in which thresholds, which change in place, are trained with the weights.

    `descent` are learning rate and momentum of their plain SGD, `penalty` is λ.
    """
    lr, momentum = descent
    speed = {n: torch.zeros_like(t) for n, t in thresholds.items()}

    @contextmanager
    def gradients() -> Iterator[None]:
        whole = {n: p.data.clone() for n, p in named.items()}
        rows = {n: as_rows(layout, n, w) for n, w in whole.items()}
        kept = {n: _kept(rows[n], thresholds[n]) for n in named}
        for n, p in named.items():
            p.data.copy_(from_rows(layout, n, rows[n] * kept[n]))
        yield
        for n, p in named.items():
            p.data.copy_(whole[n])
            slope = thresholds[n].neg().exp().mul(-penalty)
            if p.grad is not None:
                g, w = as_rows(layout, n, p.grad), rows[n]
                felt = (g * w).sum(1, keepdim=True)
                slope -= felt[:, 0]
                p.grad.copy_(from_rows(layout, n, g * kept[n] + felt * w.sign() / w.shape[1]))
            speed[n].mul_(momentum).add_(slope)
            thresholds[n].sub_(lr * speed[n])

    return Manner(gradients=gradients)


def _kept(rows: Tensor, threshold: Tensor) -> Tensor:
    """The rows that are kept; of a layer with too few of them all begin again at 0."""
    kept = rows_kept(rows, threshold)
    if float(kept.float().mean()) <= FEW:
        threshold.zero_()
        kept = rows_kept(rows, threshold)
    return kept
