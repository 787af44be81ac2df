"""What the server makes of a round's mean change: FedOpt and FedAvgM, tensor by tensor.

With Δ the mean change, the server keeps a momentum m and, but for plain momentum, a second moment
v, elementwise (Reddi et al. 2021, arXiv 2003.00295, algorithm 2):

    m = b1·m + (1 - b1)·Δ
    adagrad: v = v + Δ²
    adam:    v = b2·v + (1 - b2)·Δ²
    yogi:    v = v - (1 - b2)·Δ²·sign(v - Δ²)
    w = w + η·m / (sqrt(v) + τ)

v begins at τ², the least that the paper allows; there is no bias correction. Δ is the mean by
``--weighting`` (the paper counts clients alike). ``momentum`` is m = b1·m + Δ and w = w + η·m
(FedAvgM, Hsu et al. 2019, arXiv 1909.06335, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedprune.tensors.named import Tensors, masked

Second = Callable[[Tensor, Tensor, float], Tensor]
"""The next second moment, of the one before, Δ² and b2."""


@dataclass(frozen=True)
class ServerRule:
    """How a mean change becomes a step.

    `second` is the next second moment; None: there is none, and momentum is a plain sum.
    """

    summary: str
    source: str
    second: Second | None = None


_REDDI = "Reddi et al. 2021, arXiv 2003.00295, algorithm 2"
_HSU = "Hsu et al. 2019, arXiv 1909.06335, sect. 4.3"

SERVER_OPTIMIZERS: dict[str, ServerRule] = {
    "sgd": ServerRule(
        "the mean change, times --server-lr", "Reddi et al. 2021, arXiv 2003.00295, algorithm 1"
    ),
    "momentum": ServerRule(
        "mean changes add up, earlier ones times --server-momentum (FedAvgM)", _HSU
    ),
    "adagrad": ServerRule(
        "each weight's step by all its squared changes (FedAdagrad)", _REDDI, lambda v, d, _: v + d
    ),
    "adam": ServerRule(
        "each weight's step by its recent squared changes (FedAdam)",
        _REDDI,
        lambda v, d, b: b * v + (1 - b) * d,
    ),
    "yogi": ServerRule(
        "as adam, the squares grow and fall by steps of bounded size (FedYogi)",
        _REDDI,
        lambda v, d, b: v - (1 - b) * d * (v - d).sign(),
    ),
}


@dataclass(frozen=True)
class ServerMoments:
    """What the server remembers of earlier changes, by tensor; empty before the first."""

    first: Tensors = field(default_factory=dict)
    second: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class ServerRates:
    """The numbers of a rule: η, b1, b2 and τ."""

    lr: float
    momentum: float
    decay: float = 0.0
    floor: float = 0.0


def server_step(
    rule: ServerRule,
    moments: ServerMoments,
    change: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    rates: ServerRates,
) -> tuple[Tensors, ServerMoments]:
    """What is added to the weights, float64, and what is remembered, float32.

    Where a weight is removed, steps and momentum are 0 and the second moment is τ² again. `change`
    is the mean change of parameters alone; a tensor that is new, or of another shape, begins anew.
    """
    b1, share = rates.momentum, 1.0 if rule.second is None else 1.0 - rates.momentum
    change = masked({n: d.double() for n, d in change.items()}, masks)
    before = masked(_of_shape(moments.first, change, 0.0), masks)
    first = {n: b1 * before[n] + share * d for n, d in change.items()}
    if rule.second is None:
        return {n: rates.lr * m for n, m in first.items()}, ServerMoments(_kept(first))
    old = _of_shape(moments.second, change, rates.floor**2)
    second = {n: rule.second(old[n], d.square(), rates.decay) for n, d in change.items()}
    second |= {n: torch.where(m, second[n], rates.floor**2) for n, m in masks.items()}
    steps = {n: rates.lr * m / (second[n].sqrt() + rates.floor) for n, m in first.items()}
    return steps, ServerMoments(_kept(first), _kept(second))


def _of_shape(kept: Tensors, change: Mapping[str, Tensor], begin: float) -> Tensors:
    fits = {n for n, d in change.items() if n in kept and kept[n].shape == d.shape}
    return {
        n: kept[n].double() if n in fits else torch.full_like(d, begin) for n, d in change.items()
    }


def _kept(tensors: Tensors) -> Tensors:
    return {n: t.float() for n, t in tensors.items()}
