"""Matrices in codes of 4 or 8 bits, a scale for every group of inputs of an output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Codes:
    """A quantised matrix (out, in).

    Attributes:
        packed: unsigned codes as int8 memory, (out, inputs in whole groups * bits / 8).
        scale: bfloat16, (out, groups).
        zero: the code of 0.0, uint8 (out, groups).
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor


def grouped_codes(matrix: Tensor, bits: int, group: int, *, symmetric: bool) -> Codes:
    """A matrix in codes of 4 or 8 bits.

    What `restored` makes of them is at most half a scale away from the matrix, a whole one where
    codes are not symmetric; 0.0 is exactly 0.0. The scales are rounded up to bfloat16 first, so
    that nothing is cut off at the ends. The matrix is finite, the group even.
    """
    rows, columns = matrix.shape
    values = nn.functional.pad(matrix.float(), (0, -columns % group)).reshape(-1, group)
    scale, zero = code_grid(values, bits, symmetric=symmetric)
    flat = coded(values, scale, zero, bits).view(rows, -1)
    return Codes(packed(flat, bits), scale.view(rows, -1), zero.view(rows, -1))


def code_grid(values: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The scale, bfloat16, and the code of 0.0 of groups of weights (groups, inputs): (groups, 1).

    The smallest scale with which none is cut off.
    """
    top = 2**bits - 1
    low, high = values.amin(-1).clamp(max=0.0), values.amax(-1).clamp(min=0.0)
    if symmetric:
        scale = _upwards(torch.maximum(-low, high) / (top // 2))
        zero = torch.full(scale.shape, top // 2 + 1, dtype=torch.uint8)
    else:
        scale = _upwards((high - low) / top)
        zero = torch.round(-low / scale.float()).clamp(0, top).to(torch.uint8)
    return scale.unsqueeze(-1), zero.unsqueeze(-1)


def coded(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The codes of groups of weights, uint8, (groups, inputs)."""
    return (torch.round(values / scale.float()) + zero).clamp(0, 2**bits - 1).to(torch.uint8)


def packed(flat: Tensor, bits: int) -> Tensor:
    """Codes (out, inputs in whole groups) as memory: of 4 bits two to a byte."""
    both = flat if bits == 8 else flat[:, ::2] | (flat[:, 1::2] << 4)
    return both.contiguous().view(torch.int8)


def _upwards(scale: Tensor) -> Tensor:
    """Positive numbers as bfloat16 that are not smaller; 1 for 0."""
    near = scale.bfloat16()
    above = (near.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(scale == 0, 1.0, torch.where(near.float() < scale, above, near))


def restored(codes: Codes, bits: int, columns: int) -> Tensor:
    """The matrix (out, columns), float32, that codes stand for."""
    rows, groups = codes.scale.shape
    flat = codes.packed.view(torch.uint8)
    if bits == 4:
        flat = torch.stack((flat & 15, flat >> 4), -1)
    values = flat.reshape(rows, groups, -1).float() - codes.zero.unsqueeze(-1)
    return (values * codes.scale.float().unsqueeze(-1)).view(rows, -1)[:, :columns]
