"""How much of a round's change is kept: a w_after + (1 - a) w_before, a chosen on validation.

Averaging weights of two moments of a training run moves along the line between them (Izmailov et
al. 2018, arXiv 1803.05407, section 3.1); a server that decides how far to go after it has the mean
change takes a step size as in Reddi et al. 2021, arXiv 2003.00295, algorithm 1, here by trying a
few on the clients' validation parts. Removed weights are 0 before and after, and stay so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from fedprune.learning.candidates import HERE, Candidate

BLENDS = {
    "none": "the plain average",
    "global": "one share of the change for all tensors, chosen on the clients' validation parts",
    "layer": "a share for each block, chosen one block at a time, if together they beat one share",
}


def blocks_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The tensors that share a share: those of one numbered block, or of one module outside.

    A block is the name up to its first number (``model.layers.0``, ``features.3``); so a running
    variance and its mean are never apart.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        numbered = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
        block = numbered.group() if numbered else name.rpartition(".")[0]
        found[block] = (*found.get(block, ()), name)
    return found


def on_grid(grid: Sequence[float]) -> tuple[Candidate, ...]:
    """A candidate for each share: the whole change first, then what is nearest to it."""
    return (HERE, *(Candidate(1.0 - share) for share in _others(grid)))


def block_by_block(
    grid: Sequence[float], blocks: Mapping[str, Sequence[str]]
) -> tuple[Candidate, ...]:
    """A candidate for each block and share but 1, the whole change in all other blocks."""
    return tuple(
        Candidate(apart=dict.fromkeys(names, 1.0 - share))
        for names in blocks.values()
        for share in _others(grid)
    )


def _others(grid: Sequence[float]) -> list[float]:
    return sorted((share for share in grid if share != 1.0), key=lambda s: (abs(1.0 - s), s))


def lowest(losses: Sequence[float]) -> int:
    """The place of the lowest loss, of equal ones the first."""
    return min(range(len(losses)), key=lambda i: losses[i])


def best_of_blocks(singles: Sequence[Candidate], losses: Sequence[float], here: float) -> Candidate:
    """The best of every block's candidates in one; blocks that nothing helps stay as they are.

    Of what `block_by_block` gave, its losses, and the loss of the whole change.
    """
    best: dict[tuple[str, ...], tuple[float, Candidate]] = {}
    for single, loss in zip(singles, losses, strict=True):
        block = tuple(single.apart)
        if loss < best.get(block, (here, HERE))[0]:
            best[block] = (loss, single)
    apart = {n: far for _, single in best.values() for n, far in single.apart.items()}
    return Candidate(apart=apart) if apart else HERE


def kept_shares(candidate: Candidate, blocks: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The share of the change that a candidate keeps, by block."""
    return {block: 1.0 - candidate.at(names[0]) for block, names in blocks.items()}
