"""The perceptron of digits written down again in plain torch, for what is computed by hand."""

import math
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = ("features.1.weight", "features.3.weight")
"""The prunable matrices of the task's perceptron: its head stays."""

SMALL: dict[str, Any] = {
    **{"task": "digits", "model": "mlp", "engine": "inline", "clients": 3, "cohort": 3},
    **{"split": "dirichlet", "alpha": 0.5, "rounds": 2, "warmup": 0, "local_epochs": 1},
    # A step on all that a client has, so that what it learns can be written down.
    **{"batch_size": 10_000, "optimizer": "sgd", "momentum": 0.0, "clip": 0.0, "lr": 0.1},
}


def outputs(weights: dict[str, Tensor], x: Tensor, upto: int = 3) -> Tensor:
    """What goes into layer `upto` of the perceptron; its logits for 2 (its head) and beyond."""
    for i, name in enumerate(("features.1", "features.3", "head")[:upto]):
        w, b = weights[f"{name}.weight"].double(), weights[f"{name}.bias"].double()
        x = x @ w.T + b
        x = x.relu() if i < 2 else x
    return x


def gradients(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of the mean cross-entropy."""
    leaves = {n: w.double().requires_grad_() for n, w in weights.items()}
    loss = nn.functional.cross_entropy(outputs(leaves, x), y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


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
