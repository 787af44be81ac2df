"""Whose masks clients tune under in a round that prunes, and the global mask that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.tensors.named import Masks, Tensors, scattered


@dataclass(frozen=True)
class MaskRule:
    """Whose masks weights are tuned under in a round that prunes.

    Attributes:
        summary: one line for ``--list``.
        source: where it is from.
        rank: from the votes (clients that kept a weight) and the averaged weights to what ranks
            the weights for the global mask; None: the mask is decided before tuning.
    """

    summary: str
    source: str
    rank: Callable[[Tensor, Tensor], Tensor] | None = None


def _by_magnitude(votes: Tensor, weight: Tensor) -> Tensor:
    # What nobody kept ranks below whatever somebody kept.
    return torch.where(votes > 0, weight.abs().double(), -1.0)


MASKS: dict[str, MaskRule] = {
    "global": MaskRule("one for all, decided by the server before they tune", "SSFL, FedPrLLM"),
    "union": MaskRule(
        "each client prunes by its own scores and tunes; of what anybody kept, the largest of the "
        "averaged weights stay",
        "FedDST, Bibikar et al. 2022, arXiv 2112.09824, algorithm 1",
        _by_magnitude,
    ),
    "intersection": MaskRule(
        "each client prunes by its own scores and tunes; what most clients pruned goes, from what "
        "all of them pruned on",
        "FedSpaLLM, Bai et al. 2025, arXiv 2410.14852, eqs. 6 and 7",
        lambda votes, _weight: votes.double(),
    ),
}


def decided(
    rule: str,
    votes: Tensor,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    choose: Callable[[Tensors], Masks],
) -> Masks:
    """The global mask after clients tuned under masks of their own.

    By flat counts of the clients that kept each alive weight, the averaged weights, the mask
    before, and the exact selection.
    """
    rank = MASKS[rule].rank
    assert rank is not None  # else it was decided before
    counts = scattered(votes, {n: m.shape for n, m in masks.items()}, masks)
    return choose({n: rank(c, weights[n]) for n, c in counts.items()})
