"""Small scores and masks, and what a test reads of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.selection.densities import Ground
from fedprune.selection.patterns import pattern_counts
from fedprune.selection.scopes import total_of
from fedprune.selection.unit_numbers import Shape
from fedprune.structure.layout import Layout, as_inputs


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


def removed_count(
    layout: Layout,
    sparsity: float,
    scope: str = "global",
    unit: str = "weight",
    unit_shape: Shape | None = None,
    densities: Mapping[str, float] | None = None,
) -> int:
    """How many weights `select` removes: exactly, but for units larger than a weight at most."""
    shapes = {name: layout.shapes[name] for name in layout.prunable}
    if unit == "n:m":
        n, m = unit_shape or (0, 0)
        rows = [as_inputs(layout, x, torch.empty(s)).shape for x, s in shapes.items()]
        return sum(r * int(pattern_counts(c, n, m, sparsity).sum()) for r, c in rows)
    return total_of(Ground(shapes, sparsity, (), densities or {}), scope)
