"""Who competes with whom: the table of scopes, and how many go from each tensor under one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from fedprune.selection.densities import (
    Ground,
    Limits,
    by_pattern,
    er,
    erk,
    exactly,
    owl,
    removed_counts,
    uniform,
)


@dataclass(frozen=True)
class Scope:
    """Who competes with whom."""

    summary: str  # one line for ``--list``
    # what each tensor loses, before rounding; None: all tensors are one ranking
    shares: Callable[[Ground], list[Fraction]] | None
    # which lines of the (out, in) view are rankings of their own; "": none
    lines: Literal["", "row", "column"] = ""
    scaled: bool = False  # the shares are brought to sum to the asked count
    own_total: bool = False  # the shares say how much goes, whatever the sparsity is
    looks: bool = False  # the shares depend on the scores of all tensors


SCOPES: dict[str, Scope] = {
    "global": Scope("all prunable weights compete with each other", None),
    "layer": Scope("weights compete within their tensor, each loses the same fraction", uniform),
    "row": Scope("weights compete within their output row, each loses the same fraction", uniform,
                 lines="row"),
    "column": Scope("weights compete with those that read the same input, each input loses the "
                    "same fraction", uniform, lines="column"),
    "er": Scope("within tensors, small ones denser: (in + out) / (in * out)", er, scaled=True),
    "erk": Scope("as er, kernels of convolutions included (Evci et al. 2020, arXiv 1911.11134)",
                 erk, scaled=True),
    "owl": Scope("within tensors, those with more outliers denser (Yin et al. 2023, "
                 "arXiv 2310.05175)", owl, scaled=True, looks=True),
    "patterns": Scope("within tensors, densities from [layers], by pattern over their names",
                      by_pattern, scaled=True, own_total=True),
}  # fmt: skip


def total_of(ground: Ground, scope: str) -> int:
    """How many weights are gone in the end under a scope."""
    shares = SCOPES[scope].shares
    if SCOPES[scope].own_total and shares is not None and ground.densities:
        return math.floor(sum(shares(ground)) + Fraction(1, 2))
    n = sum(shape.numel() for shape in ground.shapes.values())
    return math.floor(ground.sparsity * n + 0.5)


def counter(ground: Ground, scope: str) -> Callable[[Sequence[Limits], int], list[int]]:
    """From limits and a total to how many go from each tensor under the scope."""
    rule = SCOPES[scope]

    def counts(limits: Sequence[Limits], total: int) -> list[int]:
        assert rule.shares is not None  # global has no counts by tensor
        sizes = [x.size for x in limits]
        shares = rule.shares(ground)
        # Not every weight is in a unit: what is in none gives its share to the others.
        scaled = rule.scaled or sizes != [shape.numel() for shape in ground.shapes.values()]
        if scaled:
            ways = shares if rule.scaled else [Fraction(size) for size in sizes]
            shares = exactly(ways, total, sizes)
        weights = shares if rule.scaled else [Fraction(size) for size in sizes]
        return removed_counts(limits, total, shares, weights)

    return counts
