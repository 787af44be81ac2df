"""Which layers become two of which rank: by the energy that stays, or by one budget for all.

Only where rank * (out + in) is less than what the matrix keeps under its mask.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.redundancy.spectrum import Spectrum


@dataclass(frozen=True)
class Matrix:
    """A matrix that may be factored.

    So many of its weights, (out, in), are kept now.
    """

    spectrum: Spectrum
    shape: tuple[int, int]
    kept: int

    @property
    def most(self) -> int:
        """The largest rank whose factors hold fewer numbers than are kept; may be 0."""
        return (self.kept - 1) // sum(self.shape)

    def size(self, rank: int | None) -> int:
        """Numbers held at a rank; as it is, for None."""
        return self.kept if rank is None else rank * sum(self.shape)


Ranks = dict[str, int]
"""The layers to factor and their ranks, by the name of the weight."""


def ranks_for_energy(matrices: Mapping[str, Matrix], part: float) -> Ranks:
    """The least rank that keeps this part of each matrix's energy, where that is smaller."""
    found = {n: m.spectrum.rank_of_energy(part) for n, m in matrices.items()}
    return {n: r for n, r in found.items() if r <= matrices[n].most}


def ranks_for_budget(matrices: Mapping[str, Matrix], part: float) -> Ranks:
    """Ranks with which all matrices together hold at most this part of what they keep now.

    The steps of rank (all layers together) with the least energy per number go first, energy as a
    part of the layer's own; a layer stays as it is as long as its factors would not be smaller.
    Never below rank 1, so that a small budget may not be reached; less than one step too little is
    left.
    """
    worth = {n: _worth(m) for n, m in matrices.items()}
    steps = torch.cat(list(worth.values())) if worth else torch.empty(0)
    budget = part * sum(m.kept for m in matrices.values())
    cuts = [0.0, *torch.unique(steps).tolist()]

    def fits(least: float) -> bool:
        ranks = _above(matrices, worth, least)
        return sum(m.size(ranks.get(n)) for n, m in matrices.items()) <= budget

    at = bisect_left(cuts, True, key=fits)
    return _above(matrices, worth, cuts[min(at, len(cuts) - 1)])


def _worth(matrix: Matrix) -> Tensor:
    """Energy for each number that a further rank holds, descending."""
    energies = matrix.spectrum.energies().diff(prepend=torch.zeros(1, dtype=torch.float64))
    return energies / sum(matrix.shape)


def _above(matrices: Mapping[str, Matrix], worth: Mapping[str, Tensor], least: float) -> Ranks:
    """The ranks whose steps are worth more than `least`."""
    found = {n: max(1, int((w > least).sum())) for n, w in worth.items()}
    return {n: r for n, r in found.items() if r <= matrices[n].most}
