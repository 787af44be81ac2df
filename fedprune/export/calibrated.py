"""Codes of fewer bits by what clients summed of a layer's inputs: GPTQ and AWQ.

A weight of 0.0 stays 0.0 in both, so that the mask is as it was. Departures: GPTQ goes through the
columns as they lie, without the order by size; AWQ's factors stay with their layer, instead of
going into what comes before it, and so every layer has its own; it clips no weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedprune.redundancy.calibration import LayerSums
from fedprune.scores.input_sums import factored
from fedprune.tensors.codes import Codes, code_grid, coded, grouped_codes, packed, restored

_DAMPENING = 0.01
"""Part of the mean of the Hessian's diagonal that is added to it (sect. 4, step 3)."""

_POWERS = 20
"""How many powers of the inputs' sizes AWQ tries, from 0 up, below 1."""


def gptq(matrix: Tensor, sums: LayerSums, bits: int, group: int, *, symmetric: bool) -> Codes:
    """Frantar et al. 2022, arXiv 2210.17323, algorithm 1: codes column by column, the rest adapts.

    What a column's rounding does to the outputs, the columns after it in the row make up for, by
    the inverse of H = Σ x xᵀ. A group's scale is taken when its first column comes.

    Args:
        matrix: (out, in), finite.
        sums: with the products of inputs.
        bits: 4 or 8.
        group: inputs that share a scale, even.
        symmetric: see `fedprune.export.quantise.Precision`.
    """
    w, alive, upper = matrix.double().clone(), matrix != 0, _upper(sums.inputs)
    flat, scales, zeros = [], [], []
    for start in range(0, w.shape[1], group):
        block = slice(start, min(start + group, w.shape[1]))
        scale, zero = code_grid((w[:, block] * alive[:, block]).float(), bits, symmetric=symmetric)
        for j in range(block.start, block.stop):
            # A weight that was removed has the code of 0.0, whatever others asked it to make up.
            there = torch.where(alive[:, j], w[:, j], 0.0).float()
            code = coded(there[:, None], scale, zero, bits)[:, 0]
            back = (code.double() - zero[:, 0]) * scale[:, 0].double()
            error = (w[:, j] - back) / upper[j, j]
            w[:, j:] -= torch.outer(error, upper[j, j:])
            flat.append(code)
        scales.append(scale)
        zeros.append(zero)
    pad = [zeros[-1][:, 0]] * (-w.shape[1] % group)
    codes = torch.stack([*flat, *pad], 1)
    return Codes(packed(codes, bits), torch.cat(scales, 1), torch.cat(zeros, 1))


def _upper(products: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    hessian = products.double().clone()
    hessian.diagonal()[hessian.diagonal() == 0] = 1.0
    hessian.diagonal().add_(_DAMPENING * hessian.diagonal().mean())
    return factored(torch.cholesky_inverse(factored(hessian)), upper=True)


def awq(
    matrix: Tensor, sums: LayerSums, bits: int, group: int, *, symmetric: bool
) -> tuple[Codes, Tensor]:
    """Lin et al. 2023, arXiv 2306.00978, eq. 4 and 5: codes of W·s, and s, (in,) bfloat16.

    s is the mean of |x|, to the power of those tried that makes the least Σ_ij (W - W')²_ij Σ x_j²:
    the error of the outputs, if inputs did not go together. Power 0 is plain rounding.
    """
    wide, best, least = matrix.double(), None, float("inf")
    for power in range(_POWERS):
        factor = _factors(sums, power / _POWERS)
        scaled = (wide * factor.double()).float()
        codes = grouped_codes(scaled, bits, group, symmetric=symmetric)
        back = restored(codes, bits, wide.shape[1]).double() / factor.double()
        error = float(((wide - back).square() * sums.inputs).sum())
        if error < least:
            best, least = (codes, factor), error
    assert best is not None  # the error is a number: sums are finite
    return best


def _factors(sums: LayerSums, power: float) -> Tensor:
    assert sums.sizes is not None  # AWQ asks for them
    size = (sums.sizes / max(1.0, sums.rows)).pow(power).clamp_min(1e-4)
    return (size / (size.max() * size.min()).sqrt()).bfloat16()
