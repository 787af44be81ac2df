"""Who of those present is asked in a round, other than by chance alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from fedprune.options.plugins import table_in
from fedprune.randomness import draw


@dataclass(frozen=True)
class Selector:
    """Who of those present is asked in a round.

    Attributes:
        summary: one line for ``--list``.
        source: where it is from.
        choose: from the training labels of those who are there, by partition, how many are wanted,
            the round and a generator seeded for it, to as many partitions at most.
    """

    summary: str
    source: str
    choose: Callable[[Mapping[int, int], int, int, torch.Generator], Iterable[int]]


def _by_labels(there: Mapping[int, int], n: int, _round: int, gen: torch.Generator) -> list[int]:
    who = sorted(there)
    chances = torch.tensor([float(there[p]) for p in who])
    able = min(n, int((chances > 0).sum()))
    if not able:
        return []
    return [who[i] for i in torch.multinomial(chances, able, generator=gen).tolist()]


SELECTORS: dict[str, Selector] = {
    "uniform": Selector(
        "every client with the same probability; --sampling says how they are drawn",
        "McMahan et al. 2017, arXiv 1602.05629, algorithm 1",
        lambda there, n, _round, gen: draw(sorted(there), n, gen),
    ),
    "labels": Selector(
        "with probability proportional to their numbers of labels, without replacement",
        "Li et al. 2020, arXiv 1812.06127 (FedProx), algorithm 2; there with replacement",
        _by_labels,
    ),
}


def selectors_of(plugin: str) -> dict[str, Selector]:
    """Every selector by name; a plug-in's (its table ``SELECTORS``) come last."""
    return {**SELECTORS, **table_in(plugin, "SELECTORS", Selector)}
