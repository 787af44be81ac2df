"""GraSP: which weights the gradient's norm would miss, from two questions.

Wang et al. 2020, arXiv 2002.07376, sect. 4: removing w changes |g|² by about -2 w·(Hg), H the
Hessian and g the gradient of the loss. The paper removes the largest -w·(Hg), so w·(Hg) is the
importance. Departures: g is pooled over the clients before the product (asked for first), both are
over the prunable tensors only, and the logits are not divided by a temperature.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedprune.scores.gradients import SumOverBatches, gradient, watched
from fedprune.scores.score import FORWARDS_OF_A_STEP, Evidence, Probe, Statistic
from fedprune.structure.layers import parameters_of
from fedprune.tensors.named import Tensors, wide_zeros


def _mean_gradient(evidence: Evidence) -> Tensors:
    return {name: s / evidence.count for name, s in evidence.sums.items()}


def _hessian_times(probe: Probe) -> Tensors:
    """Σ over the shard's labels of H ḡ, ḡ what was given, by differentiating g·ḡ."""
    parameters = parameters_of(probe.model, probe.prunable)
    sums = wide_zeros(parameters)
    # Of torch's attention kernels only the plain one can be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        for batch in probe.batches:
            for name, product in _product(probe, batch).items():
                sums[name] += product
    return sums


def _product(probe: Probe, batch: Tensors) -> Tensors:
    parameters = parameters_of(probe.model, probe.prunable)
    tensors = list(parameters.values())
    total = probe.loss(probe.model, batch).total
    first = torch.autograd.grad(total, tensors, create_graph=True, allow_unused=True)
    along = sum(
        (g * probe.given[name].to(g)).sum()
        for name, g in zip(parameters, first, strict=True)
        if g is not None
    )
    if not isinstance(along, torch.Tensor) or not along.requires_grad:
        return {}  # the loss is linear in these weights
    second = torch.autograd.grad(along, tensors, allow_unused=True)
    return {n: h for n, h in zip(parameters, second, strict=True) if h is not None}


ASKS = (
    Statistic(SumOverBatches(gradient), watch=watched(gradient)),
    Statistic(
        _hessian_times,
        given=_mean_gradient,
        passes="1 forward, 1 backward, 1 double backward",
        forwards=lambda _: 3 * FORWARDS_OF_A_STEP,  # a step, and back through both passes of it
    ),
)


def grasp(evidence: Evidence) -> Tensors:
    """w·(H ḡ): half of what |ḡ|² loses to first order when w goes."""
    return {n: evidence.weights[n].double() * s / evidence.count for n, s in evidence.sums.items()}
