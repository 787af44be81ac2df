"""Singular values of a matrix, plain or as its inputs see it, and how many of them count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.structure.low_rank_layers import root_of


@dataclass(frozen=True)
class Spectrum:
    """What a matrix consists of.

    Attributes:
        values: singular values, descending, float64, min(out, in) of them.
    """

    values: Tensor

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the values' shares of their sum; 0.0 of a matrix of zeros.

        Roy and Vetterli 2007, The effective rank, definition 1.
        """
        total = float(self.values.sum())
        if not total:
            return 0.0
        shares = self.values / total
        return math.exp(-float(torch.special.xlogy(shares, shares).sum()))

    def rank_of_energy(self, part: float) -> int:
        """The least rank whose values hold this part of the sum of squares, at least 1."""
        held = self.energies()
        return min(len(held), max(1, int((held < part - 1e-12).sum()) + 1))

    def energies(self) -> Tensor:
        """Parts of the sum of squares held by the first 1, 2, ... values; 1 where all are 0."""
        squares = self.values.square()
        total = squares.sum()
        return squares.cumsum(0) / total if total else torch.ones_like(squares)


def spectrum_of(matrix: Tensor, moments: Tensor | None = None) -> Spectrum:
    """The spectrum of a matrix W, or of W X for the inputs X whose X Xᵀ are given.

    The second one is what `fedprune.structure.low_rank_layers.truncated` cuts off: the squares of
    the values left out add up to ‖(W - W')X‖²_F.

    Args:
        matrix: (out, in).
        moments: (in, in), Σ x xᵀ; a mean gives values smaller by the root of the number of rows.
    """
    w = matrix.double()
    seen = w if moments is None else w @ root_of(moments)
    return Spectrum(torch.linalg.svdvals(seen))
