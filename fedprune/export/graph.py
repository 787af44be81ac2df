"""What the runtimes compute of a decoder, written out: the check of a file that no runtime ran.

Nothing of transformers is in it, so that a file is held against what its runtime says it does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedprune.tensors.named import Tensors


def normed(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm over the last dimension."""
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + epsilon) * weight


def turned_pairs(states: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions of llama.cpp's NORM: neighbours are turned together.

    Args:
        states: (heads, T, head).
        angles: (T, head / 2).
    """
    even, odd = states[..., ::2], states[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def turned_halves(states: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions of NEOX: the two halves of a head are turned together; see `turned_pairs`.

    This is also how transformers and vLLM keep them.
    """
    one, two = states.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((one * cos - two * sin, one * sin + two * cos), -1)


def angles_of(length: int, head: int, base: float, factors: Tensor | None = None) -> Tensor:
    """How far a position turns each pair, (length, head / 2); factors divide the frequencies."""
    each = base ** -(torch.arange(0, head, 2).float() / head)
    each = each if factors is None else each / factors
    return torch.arange(length).float()[:, None] * each


Layers = Callable[[str, Tensor], Tensor]
"""A linear layer by its name, with its bias if it has one, on (T, in)."""


def layers_at(tensors: Tensors, place: str, **names: str) -> Layers:
    """The layers whose tensors are at a place, in which %s is a layer's name there."""

    def linear(name: str, inputs: Tensor) -> Tensor:
        path = place % names.get(name, name)
        return nn.functional.linear(inputs, tensors[f"{path}.weight"], tensors.get(f"{path}.bias"))

    return linear


def attended(
    states: Tensor, linear: Layers, counts: tuple[int, int, int], turn: Callable[[Tensor], Tensor]
) -> Tensor:
    """Causal attention of one sequence (T, width), the reading layer's included.

    Args:
        states: after the norm.
        linear: layers ``q``, ``k``, ``v``, ``o``.
        counts: query heads, key and value heads, size of a head.
        turn: puts positions into (heads, T, head).
    """
    heads, groups, size = counts

    def parted(name: str, number: int) -> Tensor:
        return linear(name, states).view(-1, number, size).transpose(0, 1)

    q, k, v = turn(parted("q", heads)), turn(parted("k", groups)), parted("v", groups)
    k, v = (t.repeat_interleave(heads // groups, 0) for t in (k, v))
    weights = q @ k.transpose(1, 2) * size**-0.5
    later = torch.ones(weights.shape[1:], dtype=torch.bool).triu(1)
    mixed = weights.masked_fill(later, float("-inf")).softmax(-1) @ v
    return linear("o", mixed.transpose(0, 1).flatten(1))


def fed_forward(states: Tensor, linear: Layers) -> Tensor:
    """Gated feed-forward of (T, width): layers ``gate``, ``up``, ``down``."""
    return linear("down", nn.functional.silu(linear("gate", states)) * linear("up", states))
