"""What a unit contributes, to first order: the derivative of the loss by a gate on its output.

A gate g on what a head or a neuron hands to the layer that reads it has at g = 1 the derivative
∂L/∂g = Σ w·∂L/∂w over that layer's columns of the unit (Michel et al. 2019, arXiv 1905.10650,
section 3, who take the absolute value of every example; the sum over weights is that of Molchanov
et al. 2019, arXiv 1906.10771, eq. 8). It is additive over examples, so a client sends one number a
unit and the server takes the absolute value of the pooled sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedprune.scores.gradients import SumOverBatches, taylor
from fedprune.scores.score import Evidence, Probe, Shapes, Statistic
from fedprune.selection.units import unit_count, unit_labels
from fedprune.structure.layout import Layout
from fedprune.tensors.named import Tensors

GATES = "gates"  # The summand: Σ w·∂L/∂w over the columns that read a unit, for every unit


def _labels(layout: Layout, names: Sequence[str], unit: str) -> dict[str, Tensor]:
    return {n: label for n, label in unit_labels(layout, unit).items() if n in set(names)}


def _readers(layout: Layout) -> set[str]:
    """Tensors of the layers that read units."""
    parts = (part for group in layout.structure.groups for part in group.parts)
    return {part.tensor for part in parts if part.axis == "column"}


def _shapes(layout: Layout, names: Sequence[str], unit: str, _probes: int) -> Shapes:
    return {GATES: torch.Size([unit_count(_labels(layout, names, unit))])}


def _collect(probe: Probe) -> Tensors:
    labels = _labels(probe.layout, probe.prunable, probe.unit)
    sums = SumOverBatches(taylor)(probe)
    gates = torch.zeros(unit_count(labels), dtype=torch.float64)
    for name in _readers(probe.layout) & labels.keys():
        inside = labels[name] >= 0
        gates.index_add_(0, labels[name][inside].long(), sums[name].cpu()[inside].double())
    return {GATES: gates}


ASK_CONTRIBUTION = Statistic(_collect, _shapes, passes="1 forward and backward")


def contribution(evidence: Evidence) -> Tensors:
    """|∂L/∂gate| of the mean loss, shared out evenly over the weights of the unit.

    So `--pool sum` compares whole units, and the mean what a weight of them is worth.
    """
    labels = _labels(evidence.layout, list(evidence.weights), evidence.unit)
    gates = (evidence.sums[GATES] / evidence.count).abs()
    sizes = torch.zeros_like(gates)
    for label in labels.values():
        flat = label[label >= 0].long()
        sizes.index_add_(0, flat, torch.ones_like(flat, dtype=sizes.dtype))
    each = torch.cat([gates / sizes.clamp_min(1.0), gates.new_zeros(1)])  # the last: in no unit
    return {name: each[label.long()] for name, label in labels.items()}
