"""Small scores and masks, and what a test reads of them."""

from __future__ import annotations

import torch
from torch import Tensor


def bits(masks: dict[str, Tensor]) -> dict[str, str]:
    return {
        name: "".join("01"[int(b)] for b in m.reshape(-1).tolist()) for name, m in masks.items()
    }


def kept(masks: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def gone(mask: Tensor) -> int:
    return int((~mask).sum())


def random_scores(shapes: dict[str, tuple[int, ...]], seed: int = 3) -> dict[str, Tensor]:
    """Positive scores, some of them tied."""
    gen = torch.Generator().manual_seed(seed)
    return {n: torch.randint(1, 60, s, generator=gen).double() for n, s in shapes.items()}
