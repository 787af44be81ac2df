"""A weight as the matrix (out, in) that its layer multiplies by, however the layer keeps it.

The one place that knows that GPT-2's Conv1D keeps it the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedprune.structure.layer_kinds import is_transposed

_Axis = TypeVar("_Axis")

LAYER_KINDS = {
    "linear": "(out, in), nn.Linear",
    "conv1d": "(in, out), GPT-2's Conv1D",
    "conv": "(out, in / groups, ...), nn.Conv1d, nn.Conv2d, nn.Conv3d",
    "other": "anything that is not the weight of such a layer, taken as (first dimension, rest)",
}


def kind_of(layer: nn.Module) -> str:
    """How a layer keeps its weight, a name in `LAYER_KINDS`."""
    if isinstance(layer, nn.Linear):
        return "linear"
    return "conv1d" if is_transposed(layer) else "conv"


def as_matrix(kind: str, tensor: Tensor) -> Tensor:
    """A tensor shaped like a weight of that kind as (out, in), a view where possible.

    For convolutions a row is an output channel, (in / groups) * kernel long.
    """
    if kind == "conv1d":
        return tensor.t()
    return tensor.reshape(tensor.shape[0], -1) if tensor.dim() > 1 else tensor.reshape(-1, 1)


def from_matrix(kind: str, rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `as_matrix`."""
    return rows.t() if kind == "conv1d" else rows.reshape(shape)


def out_in_of(kind: str, axes: Sequence[_Axis]) -> tuple[_Axis, _Axis]:
    """What is said of a weight's two dimensions, of its matrix's rows and columns."""
    first, second = axes
    return (second, first) if kind == "conv1d" else (first, second)


def matrix_of(layer: nn.Module) -> Tensor:
    """A layer's own matrix (out, in), a view of its weight without a gradient."""
    weight: Any = layer.weight
    return as_matrix(kind_of(layer), weight.detach())


def out_in(layer: nn.Module) -> tuple[int, int]:
    """How many outputs and inputs a linear layer has."""
    out, inputs = matrix_of(layer).shape
    return out, inputs


def dimension_of(layer: nn.Module, axis: str) -> int:
    """The dimension of a linear layer's weight that is the matrix's "row" or "column"."""
    return int((axis == "column") != is_transposed(layer))


def own_sizes(layer: nn.Module) -> dict[str, Callable[[Any], int]]:
    """A layer's own numbers that say how many outputs and inputs it has; {} for other modules."""
    if not isinstance(layer, nn.Linear) and not is_transposed(layer):
        return {}
    out, inputs = ("nf", "nx") if is_transposed(layer) else ("out_features", "in_features")
    return {out: lambda m: out_in(m)[0], inputs: lambda m: out_in(m)[1]}
