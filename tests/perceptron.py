"""The perceptron of digits written down again in plain torch, for what is computed by hand."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fedprune import RunConfig
from tests.runs import house_of

LAYERS = ("features.1.weight", "features.3.weight")
"""The prunable matrices of the task's perceptron: its head stays."""

SMALL: dict[str, Any] = {
    **{"task": "digits", "model": "mlp", "engine": "inline", "clients": 3, "cohort": 3},
    **{"split": "dirichlet", "alpha": 0.5, "rounds": 2, "warmup": 0, "local_epochs": 1},
    # A step on all that a client has, so that what it learns can be written down.
    **{"batch_size": 10_000, "optimizer": "sgd", "momentum": 0.0, "clip": 0.0, "lr": 0.1},
}


def data(config: RunConfig, client: int) -> tuple[Tensor, Tensor]:
    """All that a client trains on: images as rows, and their labels."""
    part = house_of(config).shards[client].train
    return part["images"].flatten(1).double(), part["labels"]


def outputs(weights: dict[str, Tensor], x: Tensor, upto: int = 3) -> Tensor:
    """What goes into layer `upto` of the perceptron; its logits for 2 (its head) and beyond."""
    for i, name in enumerate(("features.1", "features.3", "head")[:upto]):
        w, b = weights[f"{name}.weight"].double(), weights[f"{name}.bias"].double()
        x = x @ w.T + b
        x = x.relu() if i < 2 else x
    return x


def gradients(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of the mean cross-entropy."""
    leaves = {n: w.detach().double().requires_grad_() for n, w in weights.items()}
    loss = nn.functional.cross_entropy(outputs(leaves, x), y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def summed_gradients(config: RunConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the cross-entropy summed over all that three clients have."""
    each = [data(config, client) for client in range(3)]
    slopes = [gradients(weights, *own) for own in each]
    return {n: sum(len(y) * s[n] for (_, y), s in zip(each, slopes, strict=True)) for n in weights}


def labels(config: RunConfig) -> int:
    """How many the three clients have."""
    return sum(len(data(config, client)[1]) for client in range(3))


Part = tuple[float, dict[str, Tensor], dict[str, Tensor]]


def mean_of_holders(parts: Iterable[Part], otherwise: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of each weight the mean over those whose masks have it; what it was where nobody's has.

    Args:
        parts: how much a client counts, its weights, and its masks, which may lack tensors.
        otherwise: what it was.
    """
    sums, held = dict.fromkeys(otherwise, 0.0), dict.fromkeys(otherwise, 0.0)
    for many, weights, masks in parts:
        for n, w in weights.items():
            m = many * masks.get(n, torch.ones_like(w)).double()
            sums[n], held[n] = sums[n] + m * w.double(), held[n] + m
    return {
        n: torch.where(held[n] > 0, s / held[n].clamp(min=1e-300), otherwise[n].double())
        for n, s in sums.items()
    }


def kept_by(mask: Tensor, score: Tensor, kept: int) -> None:
    """So many are kept, and none of those that are not scores higher, but for rounding."""
    assert int(mask.sum()) == kept
    if 0 < kept < mask.numel():
        slack = 1e-5 * float(score.abs().max())
        assert float(score[mask].min()) >= float(score[~mask].max()) - slack


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in LAYERS])


def count(mask: Tensor, sparsity: float) -> int:
    return mask.numel() - math.floor(sparsity * mask.numel() + 0.5)
