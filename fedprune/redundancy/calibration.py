"""Sums of a finished model's inputs, by which its weights are quantised with less error.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) needs Σ x xᵀ of every layer, AWQ (Lin et al. 2023,
arXiv 2306.00978) how large each input is on average. Both add up over examples and clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.redundancy.moments import MOMENTS
from fedprune.scores.inputs import inputs_of, rows_of, sums_of
from fedprune.scores.score import Probe, Shapes, Statistic
from fedprune.scores.two_sums import summed_twice
from fedprune.structure.groups import input_of
from fedprune.structure.layout import Layout, as_rows, from_rows, matrix_shape
from fedprune.tensors.named import Tensors


def _shapes(layout: Layout, names: Sequence[str], _unit: str, _probes: int) -> Shapes:
    shapes: dict[str, torch.Size] = {}
    for name, source in input_of(layout, names).items():
        if name != source:
            continue
        columns = matrix_shape(layout, name)[1:]
        shapes |= {inputs_of(name): columns, sums_of(name): columns, rows_of(name): torch.Size([1])}
    return shapes


@torch.no_grad()
def _collect(probe: Probe) -> Tensors:
    shapes = _shapes(probe.layout, probe.prunable, probe.unit, probe.probes)
    return summed_twice(probe, probe.prunable, shapes, torch.abs)


MAGNITUDES = Statistic(_collect, _shapes, passes="1 forward", signed=False)
"""Σ x², Σ |x| and the number of rows of what goes into each layer; once, where several read it."""


@dataclass(frozen=True)
class Calibration:
    """What a way to quantise asks the clients for.

    `kind` is of the question, `ask` what the clients sum.
    """

    summary: str
    source: str
    kind: str
    ask: Statistic


CALIBRATIONS = {
    "gptq": Calibration(
        "Σ x xᵀ of every layer: column by column, the rest of a row makes up for the rounding",
        "Frantar et al. 2022, arXiv 2210.17323, algorithm 1; clients' H added up",
        "inputs",
        MOMENTS,
    ),
    "awq": Calibration(
        "Σ |x| and Σ x² of every input: columns that read large ones are scaled up before rounding",
        "Lin et al. 2023, arXiv 2306.00978, eq. 4 and 5, the error by Σ x² in place of outputs",
        "magnitudes",
        MAGNITUDES,
    ),
}


def linear_of(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of the weights that are matrices of linear layers, GPT-2's included."""
    own = dict(model.named_parameters())
    return [name for name in names if own[name].dim() == 2]


@dataclass(frozen=True)
class LayerSums:
    """What clients summed of a layer's inputs, float64.

    Attributes:
        inputs: (columns, columns) Σ x xᵀ, or (columns,) Σ x².
        sizes: (columns,) Σ |x|; None where it was not asked for.
        rows: how many rows there were.
    """

    inputs: Tensor
    sizes: Tensor | None
    rows: float


def columns_left(before: Layout, now: Layout) -> dict[str, Tensor]:
    """Of every weight that is a matrix the columns that further cuts have left, by its name.

    `before` is the layout of the model that was summed about.
    """
    numbers: Tensors = {}
    for name in before.prunable:
        if len(before.shapes[name]) == 2:
            rows = as_rows(before, name, torch.empty(before.shapes[name]))
            each = torch.arange(rows.shape[1], dtype=torch.float64).expand(rows.shape)
            numbers[name] = from_rows(before, name, each).contiguous()
    left = now.from_origin(before.in_origin(numbers))
    left = {n: as_rows(now, n, t) for n, t in left.items() if n in numbers and t.numel()}
    return {n: t[0].long() for n, t in left.items()}


def layer_sums(sums: Tensors, columns: dict[str, Tensor]) -> dict[str, LayerSums]:
    """By weight, from named sums.

    Those that clients gave of the model before further cuts, and which of its columns are left now.
    """
    found = {}
    for name, left in columns.items():
        if inputs_of(name) not in sums:
            continue
        inputs, sizes = sums[inputs_of(name)].double()[left], sums.get(sums_of(name))
        inputs = inputs[:, left] if inputs.dim() == 2 else inputs
        sizes = None if sizes is None else sizes.double()[left]
        found[name] = LayerSums(inputs, sizes, float(sums[rows_of(name)]))
    return found
