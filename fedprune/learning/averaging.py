"""Averaging as sums: Σ n_k (w_k - w_sent) / Σ n_k on the kept coordinates, in float64.

FedAvg (McMahan et al. 2017, arXiv 1602.05629, algorithm 1) written on the change, so that clipping,
noise and fixed point can act on what is released; with a server learning rate as in Reddi et al.
2021, arXiv 2003.00295 (server SGD).

BatchNorm's running variances do not average: the variance of a mixture also holds the spread of
its means. They travel as second moments E[x²] = var + mean², which do.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedprune.pruning.layout import Layout
from fedprune.tensors import Tensors, masked, spread


def to_moments(tensors: Mapping[str, Tensor], layout: Layout) -> Tensors:
    """The same tensors with running variances turned into second moments."""
    moments = dict(tensors)
    for variance, mean in layout.variances.items():
        # In float64: a small variance beside a large mean would be lost in float32.
        moments[variance] = tensors[variance].double() + tensors[mean].double() ** 2
    return moments


def from_moments(tensors: Mapping[str, Tensor], layout: Layout) -> Tensors:
    """The inverse of `to_moments`; a variance that rounding made negative becomes 0."""
    out = dict(tensors)
    for variance, mean in layout.variances.items():
        out[variance] = (tensors[variance] - tensors[mean] ** 2).clamp(min=0.0)
    return out


def change(tuned: Mapping[str, Tensor], sent: Mapping[str, Tensor], layout: Layout) -> Tensors:
    """What one client releases of its training: new minus sent, in float32."""
    after, before = to_moments(tuned, layout), to_moments(sent, layout)
    return {name: (after[name] - before[name]).float() for name in after}


def averaged(
    weights: Mapping[str, Tensor],
    total: Tensor,
    weight: float,
    masks: Mapping[str, Tensor],
    layout: Layout,
    server_lr: float,
) -> Tensors:
    """The next global weights, float32, exactly 0.0 where a mask is False.

    Args:
        weights: the current global weights.
        total: flat float64 Σ n_k · change_k on the kept coordinates.
        weight: Σ n_k.
        masks: the mask that the clients trained under.
        layout: the model's layout.
        server_lr: factor on the mean change.
    """
    mean = spread(total / weight, layout.shapes, masks)
    double = {name: w.double() for name, w in masked(weights, masks).items()}
    before = to_moments(double, layout)
    after = {name: before[name] + server_lr * mean[name] for name in before}
    return {name: w.float() for name, w in from_moments(after, layout).items()}
