"""A head of output in units of the labels, whose own values are standardised.

Labels of a regression may be anything from 1e-4 to 1e9, and no optimizer, clip norm or wire copes
with both. So the head learns standardised values, and what follows it, fixed and the same on every
side, makes the labels' own units of them. In a plain model the two are one layer.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Scaling(NamedTuple):
    """A label is `centre` + `spread` · a standardised value."""

    centre: float
    spread: float


class Rescale(nn.Module):
    """From standardised values to labels; it learns nothing."""

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor([scaling.centre]), requires_grad=False)
        self.spread = nn.Parameter(torch.tensor([scaling.spread]), requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        """Labels, of the shape of the values."""
        return values * self.spread + self.centre


def rescaled(model: nn.Module, head: str, scaling: Scaling) -> nn.Module:
    """The model with what makes labels of values behind its head, a linear layer, by path.

    A head without a bias (LLaMA, GPT-2) could not keep the centre in a plain model: behind one it
    is 0, and the spread is that around 0.
    """
    parent, _, name = head.rpartition(".")
    linear: Any = model.get_submodule(head)
    if linear.bias is None:
        scaling = Scaling(0.0, math.hypot(*scaling))
    setattr(model.get_submodule(parent), name, nn.Sequential(linear, Rescale(scaling)))
    return model


@torch.no_grad()
def unfolded(model: nn.Module, head: str) -> nn.Module:
    """The model with the values of its plain head behind what makes labels: it says the same."""
    pair: Any = model.get_submodule(head)
    linear, rescale = pair
    linear.weight /= rescale.spread
    if linear.bias is not None:
        linear.bias.sub_(rescale.centre).div_(rescale.spread)
    return model


def folded(model: nn.Module) -> nn.Module:
    """A model that says the same with plain heads; the model itself where it has no `Rescale`."""
    heads = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Sequential))
    found = [path for path, m in heads if any(isinstance(part, Rescale) for part in m)]
    if not found:
        return model
    model = copy.deepcopy(model)
    for path in found:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, _as_one(model.get_submodule(path)))
    return model


@torch.no_grad()
def _as_one(pair: nn.Module) -> nn.Module:
    linear, rescale = pair.children()
    assert isinstance(linear, nn.Linear)
    assert isinstance(rescale, Rescale)
    linear.weight *= rescale.spread
    if linear.bias is not None:
        linear.bias.mul_(rescale.spread).add_(rescale.centre)
    return linear
