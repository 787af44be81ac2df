"""Changes of few bits: rounded up or down at random, so that on average nothing is lost.

QSGD (Alistarh et al. 2017, arXiv 1610.02132, section 3.1) with the largest value of a chunk in
place of its norm: |v| = s (l + r) / L becomes the level l + 1 with probability r, else l. The
expectation of what arrives is v, and 0 arrives as 0. For what clients add up only: the weights that
go down would be another model for every client, and their errors meet in no sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedprune.codec.bounded import Buffer
from fedprune.tensors.named import as_bytes, over_bytes

BITS = {"int8": 8, "int4": 4}
"""Types of the wire that round at random, and their bits a value."""

CHUNK = 512
"""Values that share a scale of four bytes."""


def encode_rounded(values: Tensor, bits: int, gen: torch.Generator) -> bytes:
    """Flat values as scales and signed levels.

    Where a chunk has a value that is not finite, all of it arrives so: the receiver refuses it.
    There are 4 or 8 bits; `gen` is on the CPU, and what is drawn depends on how many values there
    are.
    """
    levels = 2 ** (bits - 1) - 1
    chunks = torch.nn.functional.pad(values.float(), (0, -len(values) % CHUNK)).view(-1, CHUNK)
    scale = chunks.abs().amax(1)
    size = chunks.abs() * (levels / scale.unsqueeze(1))
    size = torch.nan_to_num(size, nan=0.0, posinf=0.0).clamp(max=levels)  # a chunk of zeros: 0 / 0
    below = size.floor()
    up = torch.rand(chunks.shape, generator=gen) < size - below
    signed = ((below + up) * chunks.sign()).view(-1)[: len(values)].nan_to_num(0.0)
    codes = signed.to(torch.int8)
    return bytes(as_bytes(scale)) + bytes(as_bytes(codes if bits == 8 else _pairs(codes)))


def _pairs(codes: Tensor) -> Tensor:
    shifted = torch.nn.functional.pad(codes + 8, (0, len(codes) % 2)).to(torch.uint8)
    return shifted[::2] | (shifted[1::2] << 4)


def decode_rounded(data: Buffer, bits: int, count: int) -> Tensor:
    """The `count` values that arrive, (count,) float32.

    Raises:
        ValueError: the bytes are not so many values.
    """
    scales, width = -(-count // CHUNK), -(-count * bits // 8)
    if count < 0 or len(data) != 4 * scales + width:
        raise ValueError(f"{len(data)} bytes are not {count} values of {bits} bits")
    levels = 2 ** (bits - 1) - 1
    step = over_bytes(data[: 4 * scales], torch.float32) / levels
    codes = over_bytes(data[4 * scales :], torch.int8 if bits == 8 else torch.uint8)
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), 1).flatten()[:count].to(torch.int8) - 8
    values: Tensor = codes.float() * step.repeat_interleave(CHUNK)[:count]
    return values
