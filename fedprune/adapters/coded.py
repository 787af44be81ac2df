"""Frozen weights of 8 or 4 bits beside factors in float32 (QLoRA, Dettmers et al. 2023).

As in arXiv 2305.14314, eq. 5, the frozen weight is restored from its codes layer by layer while a
pass needs it. Departures: codes are integers in groups of `GROUP` inputs with one scale
(`fedprune.tensors.codes`), no NF4, no scales of scales. Weights are rounded once, before round one;
from then on what is frozen *is* the rounded weight, for the server, in scores and in the result, so
that a run is what it would be from rounded weights in float32. A removed weight is 0.0, which is a
code, and a mask that tightens leaves all others what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedprune.structure.layout import Layout, as_rows, from_rows, matrix_shape
from fedprune.tensors.codes import Codes, grouped_codes, packed, restored
from fedprune.tensors.lazy import LazyTensors

CODE_BITS = {"int8": 8, "int4": 4}
GROUP = 64
"""Inputs of an output that share a scale."""


def in_codes(
    weights: Mapping[str, Tensor], paths: Sequence[str], layout: Layout, kind: str
) -> LazyTensors:
    """Weights of which those of some layers are held in codes, and restored when asked for.

    What stands in codes already stays as it is, bit for bit. `kind` is "int8" or "int4"; weights of
    other layers are held as they are.
    """
    bits, coded = CODE_BITS[kind], dict[str, Codes]()
    for path in paths:
        name = f"{path}.weight"
        coded[name] = _nearest(as_rows(layout, name, weights[name]).detach(), bits)
    rest = {name: t for name, t in weights.items() if name not in coded}

    def made(name: str) -> Tensor:
        if name in rest:
            return rest[name]
        columns = matrix_shape(layout, name)[1]
        return from_rows(layout, name, restored(coded[name], bits, columns)).contiguous()

    return LazyTensors(weights, made, coded)


def _nearest(matrix: Tensor, bits: int) -> Codes:
    """The codes of a matrix, rounded where it stands in none."""
    group = _group(matrix)
    there, is_there = _on_grid(matrix, bits, group)
    near = grouped_codes(matrix, bits, group, symmetric=True)
    bytes_of_group = is_there.repeat_interleave(group * bits // 8, dim=1)
    return Codes(
        torch.where(bytes_of_group, there.packed, near.packed),
        torch.where(is_there, there.scale, near.scale.float()),
        there.zero,
    )


def codes_of(matrix: Tensor, bits: int) -> Codes:
    """The codes of a matrix (out, in) of `in_codes`, whatever of it was removed since.

    `restored` makes the same matrix of them, bit for bit.

    Raises:
        ValueError: some of its weights stand in none.
    """
    codes, there = _on_grid(matrix, bits, _group(matrix))
    if not there.all():
        raise ValueError(f"weights: not of {bits} bits, as adapter-base says they are")
    return codes


def _group(matrix: Tensor) -> int:
    columns = matrix.shape[1]
    return min(GROUP, columns + columns % 2)


def _on_grid(matrix: Tensor, bits: int, group: int) -> tuple[Codes, Tensor]:
    """The codes of every group that is multiples of one number, and which groups are (out, groups).

    That number is the greatest common divisor of the group's weights, which are whole numbers times
    the power of two of the smallest one's last digit. The scale that they were rounded with may be
    a fraction of it: the codes are smaller then, and stand for the same.
    """
    rows, columns = matrix.shape
    top = 2 ** (bits - 1) - 1
    values = torch.nn.functional.pad(matrix.float(), (0, -columns % group)).view(-1, group)
    digits, power = torch.frexp(values)
    lowest = torch.where(values == 0, 2**30, power).amin(1, keepdim=True)
    over = torch.where(values == 0, 0, power - lowest)
    there = (over <= bits).all(1)  # else the largest is more than `top` times the smallest
    whole = torch.ldexp(digits.double(), over.clamp(max=bits) + 24).to(torch.int64)
    divisor = _divisor(whole.abs())
    codes = whole // divisor.clamp(min=1)
    there &= codes.abs().amax(1) <= top
    scale = torch.ldexp(divisor.double(), torch.where(divisor == 0, 0, lowest - 24)).float()
    flat = (codes.clamp(-top, top) + top + 1).to(torch.uint8).view(rows, -1)
    zero = torch.full((1, 1), top + 1, dtype=torch.uint8)
    found = Codes(packed(flat, bits), scale.view(rows, -1), zero.to(matrix.device))
    return found, there.view(rows, -1)


def _divisor(whole: Tensor) -> Tensor:
    """The greatest common divisor of each row, (rows, 1); 0 of zeros."""
    while whole.shape[1] > 1:
        odd = whole.shape[1] % 2
        half = torch.gcd(whole[:, : whole.shape[1] // 2], whole[:, whole.shape[1] // 2 :][:, odd:])
        middle = whole[:, whole.shape[1] // 2 :][:, :odd]
        whole = torch.cat((half, middle), 1)
    return whole
