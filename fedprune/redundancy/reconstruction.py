"""Layer-wise reconstruction after pruning: least squares for what stays, without back-propagation.

For each row of a layer, of the kept columns S: the w_S with the least Σ (y - w_S·x_S)². Σ x xᵀ and
Σ y xᵀ add up over examples and clients, so federated equals pooled. He et al. 2017, arXiv
1707.06168, eq. 3 (there of channels), with the inputs x of the pruned model; y is

- inputs: what the layer would have made of them before it was pruned, W x, for which the server
  needs no more than Σ x xᵀ;
- outputs: what the layer did make before pruning of the same example, which also makes up for what
  the layers before it have changed. The clients run both models, and receive the one from before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.redundancy.moments import MOMENTS
from fedprune.scores.input_sums import factored
from fedprune.scores.inputs import inputs_of
from fedprune.scores.score import Probe, Shapes, Statistic
from fedprune.structure.layers import input_rows, layers_of, output_rows, parameters_of, watching
from fedprune.structure.layout import Layout, matrix_shape
from fedprune.tensors.named import Tensors

RIDGE = 0.01
"""Part of the mean of Σ x x's diagonal that holds the weights where they are."""


def outputs_of(name: str) -> str:
    """What the sums Σ y xᵀ of a weight's outputs and inputs, (out, columns), are called."""
    return f"{name}/outputs"


def sizes_of(name: str) -> str:
    """What the sum Σ y² of a weight's outputs is called."""
    return f"{name}/sizes"


def before_of(name: str) -> str:
    """What a weight as it was before pruning is called, where it goes along with a question."""
    return f"{name}/before"


def _shapes(layout: Layout, names: Sequence[str], unit: str, probes: int) -> Shapes:
    shapes: dict[str, torch.Size] = {}
    for name in names:
        moments = MOMENTS.shapes(layout, [name], unit, probes)
        shapes[inputs_of(name)] = moments[inputs_of(name)]
        shapes[outputs_of(name)] = matrix_shape(layout, name)
        shapes[sizes_of(name)] = torch.Size([1])
    return shapes


@torch.no_grad()
def _collect(probe: Probe) -> Tensors:
    """Σ x xᵀ, Σ y xᵀ and Σ y², x of the model and y of the one before; biases are not in y."""
    names = probe.prunable
    dense = copy.deepcopy(probe.model).eval()
    for name, p in parameters_of(dense, probe.layout.prunable).items():
        p.copy_(probe.given[before_of(name)])
    shapes = _shapes(probe.layout, names, probe.unit, probe.probes)
    device = next(dense.parameters()).device
    sums = {n: torch.zeros(s, dtype=torch.float64, device=device) for n, s in shapes.items()}
    wanted: dict[str, list[Tensor]] = {}

    def made(name: str, layer: nn.Module, _x: Tensor, y: Tensor) -> None:
        rows = output_rows(layer, y).flatten(0, 1)
        wanted[name].append(rows - layer.bias if isinstance(layer.bias, Tensor) else rows)

    def seen(name: str, layer: nn.Module, x: Tensor, _y: Tensor) -> None:
        rows, y = input_rows(layer, x).flatten(0, 2), wanted[name].pop(0)
        sums[inputs_of(name)] += rows.t() @ rows
        sums[outputs_of(name)] += y.t() @ rows
        sums[sizes_of(name)] += y.square().sum()

    for batch in probe.batches:
        wanted |= {name: [] for name in names}
        with watching(layers_of(dense, names), made):
            probe.loss(dense, batch)
        with watching(layers_of(probe.model, names), seen):
            probe.loss(probe.model, batch)
    return sums


OUTPUTS = Statistic(_collect, _shapes, passes="2 forward")
"""The model from before goes along: all prunable weights by `before_of`."""


@dataclass(frozen=True)
class Fit:
    """What a layer is fitted to.

    Attributes:
        inputs: (columns, columns) Σ x xᵀ, float64.
        outputs: (out, columns) Σ y xᵀ.
        size: Σ y².
    """

    inputs: Tensor
    outputs: Tensor
    size: float

    def error(self, w: Tensor) -> float:
        """Σ |y - w x|² of weights (out, columns)."""
        crossed = (w * self.outputs).sum()
        return max(0.0, self.size - 2 * float(crossed) + float(((w @ self.inputs) * w).sum()))


def _to_inputs(sums: Mapping[str, Tensor], name: str, before: Tensor) -> Fit:
    inputs = sums[inputs_of(name)].double()
    outputs = before @ inputs
    return Fit(inputs, outputs, float((outputs * before).sum()))


def _to_outputs(sums: Mapping[str, Tensor], name: str, _before: Tensor) -> Fit:
    outputs, size = sums[outputs_of(name)].double(), float(sums[sizes_of(name)])
    return Fit(sums[inputs_of(name)].double(), outputs, size)


@dataclass(frozen=True)
class Reconstruction:
    """What layers are fitted to after a pruning.

    Attributes:
        summary: one line for ``--list``.
        source: where it is from.
        ask: what the clients sum; its name in the table is the kind of the question.
        fit: from the sums, a weight's name and its (out, columns) values before pruning, float64.
        needs_before: whether the weights from before go along with the question.
        ordered: layers are fitted one after the other. What a layer makes up for is gone once the
            layers before it are fitted too, so that at once all of them would do so twice.
    """

    summary: str
    source: str
    ask: Statistic
    fit: Callable[[Mapping[str, Tensor], str, Tensor], Fit]
    needs_before: bool = False
    ordered: bool = False


RECONSTRUCTIONS: dict[str, Reconstruction] = {
    "inputs": Reconstruction(
        "to the layer's own outputs before it was pruned, on the inputs it has in the pruned model",
        "SparseGPT, arXiv 2301.00774, eq. 2",
        MOMENTS,
        _to_inputs,
    ),
    "outputs": Reconstruction(
        "to the layer's outputs in the unpruned model, which clients run beside the pruned one",
        "He et al. 2017, arXiv 1707.06168, sect. 3.2 (whole model)",
        OUTPUTS,
        _to_outputs,
        needs_before=True,
        ordered=True,
    ),
}


def refit(
    w: Tensor, alive: Tensor, fit: Fit, ridge: float = RIDGE, *, columns: int | None = None
) -> Tensor:
    """The weights with the least error, 0.0 where they are not alive, float64.

    Args:
        w: (out, columns) float64, 0.0 where removed: what the ridge draws the rows towards.
        alive: the same shape. Rows that keep the same columns are solved for together.
        fit: what they are fitted to.
        ridge: part of the mean of the diagonal of Σ x xᵀ; 0.0 where that is regular on all kept
            columns. A column whose input is always 0 stays as it is.
        columns: how many there were before any were cut, whose inputs count as 0 in that mean.
    """
    system = fit.inputs.clone()
    dead = system.diagonal() == 0
    system.diagonal()[dead] = 1.0
    left = 1.0 if columns is None else w.shape[1] / columns
    system.diagonal().add_(ridge * fit.inputs.diagonal().mean() * left)
    wanted = fit.outputs - w @ fit.inputs
    fresh = w.clone()
    patterns, which = alive.unique(dim=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        kept = pattern.nonzero().squeeze(1)
        rows = (which == i).nonzero()
        if len(kept):
            factor = factored(system[kept][:, kept])
            step = torch.cholesky_solve(wanted[rows, kept].t(), factor).t()
            fresh[rows, kept] += step
    return fresh
