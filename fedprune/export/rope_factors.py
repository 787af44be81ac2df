"""Factors of rotary positions, as llama.cpp has them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fedprune.export.decoder import (
    Decoder,
    Unheld,
)


def rope_factors(decoder: Decoder) -> Tensor | None:
    """What llama.cpp divides the frequencies of positions by, (head / 2,); None: by nothing.

    Raises:
        Unheld: positions are of a kind that it would compute otherwise.
    """
    rope = dict(decoder.settings.rope_parameters)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Unheld("model.rotary_emb: only a part of a head is turned, llama.cpp turns all of it")
    if rope["rope_type"] == "default":
        return None
    if rope["rope_type"] == "linear":
        return torch.full((decoder.head // 2,), float(rope["factor"]))
    if rope["rope_type"] == "llama3":
        return _llama3_factors(rope, decoder.head)
    raise Unheld(
        f"model.rotary_emb: rope_type={rope['rope_type']!r}, held are default, linear and llama3"
    )


def _llama3_factors(rope: dict[str, Any], head: int) -> Tensor:
    """Of Llama 3.1: long waves are stretched, short ones stay, between them it is in proportion."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    waves = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, head, 2).double() / head)
    turns = rope["original_max_position_embeddings"] / waves
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    factors: Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.float()
