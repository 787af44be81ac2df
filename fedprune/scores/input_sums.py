"""What sums of a layer's inputs must hold, and what scores make of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.scores.inputs import inputs_of, rows_of, sums_of
from fedprune.scores.score import Evidence
from fedprune.structure.groups import input_of


def unseen(sums: Mapping[str, Tensor]) -> list[str]:
    """The weights whose layers no row went through, among those that sums of inputs are of."""
    end = rows_of("")
    return [n.removesuffix(end) for n, t in sums.items() if n.endswith(end) and not t.any()]


def improper(sums: Mapping[str, Tensor]) -> str:
    """The first of named sums of inputs that no inputs add up to; "" where there is none.

    A number of rows or a square is not below 0, |Σ x y| is at most sqrt(Σ x² · Σ y²) and |Σ x| at
    most sqrt(n Σ x²), with room for what the wire rounds.
    """
    for name, of in sums.items():
        if name.endswith(rows_of("")) and bool((of < 0).any()):
            return name
        if name.endswith(sums_of("")) and _beyond(sums, name.removesuffix(sums_of(""))):
            return name
        if name.endswith(inputs_of("")) and of.ndim == 2 and _beyond_squares(of):
            return name
    return ""


_ROWS = 128
"""Rows of a Σ x yᵀ that are looked at together: all would take three further ones in float64."""


def _beyond_squares(of: Tensor) -> bool:
    """Whether any Σ x y is more than sqrt(Σ x² · Σ y²), or a Σ x² below 0."""
    own = of.diagonal().double()
    most = own.clamp_min(0.0).sqrt()
    room = 1e-3 * float(own.abs().max()) if own.numel() else 0.0
    parts = zip(of.split(_ROWS), most.split(_ROWS), strict=True)
    return bool((own < -room).any()) or any(
        bool((part.abs() > 1.5 * some.outer(most) + room).any()) for part, some in parts
    )


def _beyond(sums: Mapping[str, Tensor], name: str) -> bool:
    """Whether Σ x of any column is more than sqrt(n Σ x²), or Σ x² below 0."""
    squared, rows = sums[inputs_of(name)].double(), sums[rows_of(name)].double()
    most = (squared.clamp_min(0.0) * rows).sqrt()
    room = 1e-3 * (most.max() + 1.0) if most.numel() else 0.0
    over = sums[sums_of(name)].double().abs() > 1.5 * most + room
    return bool((squared < 0).any() or over.any())


def factored(system: Tensor, *, upper: bool = False) -> Tensor:
    """The Cholesky factor of a damped Σ x xᵀ.

    Of a matrix that is none, as a client's answer may make the sum, the factor of the nearest one
    whose eigenvalues are a millionth of the largest at least.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(system, upper=upper)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(system)
    least = 1e-6 * float(values.abs().max()) or 1.0
    factor = torch.linalg.cholesky((vectors * values.clamp_min(least)) @ vectors.mT, upper=upper)
    return factor


def mean_inputs(evidence: Evidence, name: str) -> Tensor:
    """Mean over rows of what was summed, float64; 0 where nothing went through the layer."""
    inputs, rows = summed_of(evidence, name)
    return inputs / rows.clamp(min=1.0)


def summed_of(evidence: Evidence, name: str) -> tuple[Tensor, Tensor]:
    """What was summed of a weight's inputs and the number of rows, under whichever name."""
    sums, layout = evidence.sums, evidence.layout
    if inputs_of(name) not in sums:
        names = [n for n in layout.prunable if n == name or inputs_of(n) in sums]
        name = input_of(layout, names)[name]
    return sums[inputs_of(name)], sums[rows_of(name)]
