"""FLAP: heads and neurons whose activations hardly change, and biases that stand for their means.

An et al. 2024 (AAAI), arXiv 2312.11983, with its authors' code (metrics WIFV, structure AL-AM). Of
what reads the units (an attention's output, a feed-forward layer's second matrix) the clients sum
x, x² and the rows of its inputs, which add up. A unit whose input always is about the same is
replaced by its mean: W x̄ of what goes is added to the layer's bias, and nothing is tuned.

Departures: the variance is that of all rows at once, from the sums; the code goes on from batch to
batch and leaves the first one out. What is gone already does not count in mean and deviation. How
many weights a unit takes is counted instead of said (512/3 neurons a head), by ``--sparsity``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedprune.scores.inputs import inputs_of, rows_of, sums_of
from fedprune.scores.score import Evidence, Probe, Shapes, Statistic, unrecognised
from fedprune.scores.two_sums import summed_twice
from fedprune.structure.groups import Group, UnitSlice
from fedprune.structure.layout import Layout, as_rows, from_rows
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.named import Masks, Tensors

_KINDS = {"head": ("head",), "neuron": ("neuron",)}
"""The groups that are scored for a kind of unit; for others both."""


def _readers(layout: Layout, names: Sequence[str], unit: str) -> Iterator[tuple[Group, UnitSlice]]:
    """The groups of units, and of each the part that reads them, where it is asked about."""
    for group in layout.structure.groups:
        if group.kind in _KINDS.get(unit, ("head", "neuron")):
            yield from ((group, p) for p in group.parts if p.axis == "column" and p.tensor in names)


def _shapes(layout: Layout, names: Sequence[str], unit: str, _probes: int) -> Shapes:
    shapes: dict[str, torch.Size] = {}
    for _, part in _readers(layout, names, unit):
        columns = torch.Size([part.index.numel()])
        shapes[inputs_of(part.tensor)] = shapes[sums_of(part.tensor)] = columns
        shapes[rows_of(part.tensor)] = torch.Size([1])
    if not shapes and not any(_readers(layout, layout.prunable, unit)):
        raise unrecognised("flap", "heads or neurons")
    return shapes


@torch.no_grad()
def _collect(probe: Probe) -> Tensors:
    """Σ x², Σ x and the number of rows of what reads units, float64."""
    shapes = _shapes(probe.layout, probe.prunable, probe.unit, probe.probes)
    names = [part.tensor for _, part in _readers(probe.layout, probe.prunable, probe.unit)]
    return summed_twice(probe, names, shapes, lambda x: x)


_NOTHING = 1e-12

ASK_FLUCTUATION = Statistic(_collect, _shapes, passes="1 forward")


def flap(evidence: Evidence) -> Tensors:
    """Every weight's score is its unit's: how much what it does varies, against its layer.

    Of a column j of what reads the units: s_j = (Σ x_j² - n x̄_j²)/(n - 1)·‖W_j‖² (WIFV), of an
    attention squared, as the authors' code has it; over the layer's columns (s - mean)/deviation
    (AL-AM), and of a head the mean over its columns. 0 of what is in no unit and always stays.
    """
    shapes = shapes_of(evidence.weights)
    scores = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in shapes.items()}
    for group, part in _readers(evidence.layout, list(evidence.weights), evidence.unit):
        units = _standardised(evidence, group, part)
        for each in group.parts:
            if each.tensor in scores:
                _spread(scores, evidence.layout, each, units)
    return scores


def _standardised(evidence: Evidence, group: Group, part: UnitSlice) -> Tensor:
    """The scores of a group's units, (units,)."""
    rows = as_rows(evidence.layout, part.tensor, evidence.weights[part.tensor].double())
    there = as_rows(evidence.layout, part.tensor, evidence.masks[part.tensor]).any(0)
    fluctuation = variance(evidence, part.tensor) * rows.square().sum(0)
    if group.kind == "head":
        fluctuation = fluctuation.square()
    alive = fluctuation[there]
    spread = alive.std() if len(alive) > 1 else alive.new_zeros(())
    away = fluctuation - alive.mean() if len(alive) else fluctuation
    units = (away / spread if spread > 0 else torch.zeros_like(away))[part.index].mean(1)
    # Of a layer with one unit the mean is 0, and what rounding leaves of it says nothing.
    return units.masked_fill(units.abs() < _NOTHING, 0.0)


def _spread(scores: Tensors, layout: Layout, part: UnitSlice, units: Tensor) -> None:
    """Write the units' scores into a tensor's, along the rows or columns that are theirs."""
    rows = as_rows(layout, part.tensor, scores[part.tensor]).clone()
    along = rows if part.axis == "row" else rows.t()
    along[part.index.reshape(-1)] = units.repeat_interleave(part.index.shape[1])[:, None]
    scores[part.tensor] = from_rows(layout, part.tensor, rows).contiguous()


def variance(evidence: Evidence, name: str) -> Tensor:
    """The sample variance of a layer's inputs, (columns,) float64; 0 of fewer than two rows."""
    n = evidence.sums[rows_of(name)].clamp_min(1.0)
    total, squared = evidence.sums[sums_of(name)], evidence.sums[inputs_of(name)]
    return (squared - total.square() / n).clamp_min(0.0) / (n - 1).clamp_min(1.0)


def mean_outputs(evidence: Evidence, masks: Masks) -> Tensors:
    """W x̄ of the weights that masks remove, (out,) float64, by the name of the weight.

    Of layers that lose nothing there is none.
    """
    lost: Tensors = {}
    for _, part in _readers(evidence.layout, list(evidence.weights), evidence.unit):
        name = part.tensor
        goes = evidence.masks[name] & ~masks[name]
        if goes.any():
            mean = evidence.sums[sums_of(name)] / evidence.sums[rows_of(name)].clamp_min(1.0)
            gone = evidence.weights[name].double() * goes
            lost[name] = as_rows(evidence.layout, name, gone) @ mean
    return lost
