"""Who competes with whom: the table of scopes, what goes from each tensor, what fits which unit."""

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
from fedprune.selection.units import UNITS


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


def scopes_of(unit: str) -> tuple[str, ...]:
    """The scopes that a kind of unit can be ranked under.

    A pattern decides in every group by itself; units of several tensors have no tensor's density;
    units that are whole tensors have no other beside them there, but experts: those of a mixture.
    """
    if unit == "weight":
        return tuple(SCOPES)
    if unit == "n:m" or (UNITS[unit].tensors == "all" and unit != "expert"):
        return ("global",)
    if UNITS[unit].tensors == "many" or unit == "expert":
        return ("global", "layer")
    return tuple(name for name, scope in SCOPES.items() if not scope.lines)


def conflict(unit: str, scope: str, *, min_density: float = 0.0, max_density: float = 1.0) -> str:
    """Why units cannot be selected under a scope and these limits, "" if they can."""
    allowed = scopes_of(unit)
    if scope not in allowed:
        return f"unit {unit} cannot be ranked so"
    fixed = "n:m fixes" if unit == "n:m" else "patterns fix" if scope == "patterns" else ""
    if fixed and (min_density > 0.0 or max_density < 1.0):
        return f"{fixed} the density of every tensor, which leaves min-density 0, max-density 1"
    if min_density > 0.0 and UNITS[unit].tensors == "all":
        return f"unit {unit} removes whole tensors, which leaves min-density 0"
    if max_density < 1.0 and unit != "weight":
        return f"unit {unit} has sizes that no max-density can be kept with but 1"
    return ""


def scope_fits(vote_scope: str, scope: str) -> str:
    """Why clients' masks of one scope cannot be counted under another, "" if they can.

    FedPrLLM (2025), arXiv 2505.13547, table 4: equal comparison groups fit, and the server may
    compare layer by layer what clients compared row by row.
    """
    if vote_scope == scope or (vote_scope, scope) == ("row", "layer"):
        return ""
    return (
        f"votes of weights that competed per {vote_scope} do not rank per {scope} "
        "(FedPrLLM, arXiv 2505.13547, table 4: perplexity 7.98 became 31.85 with layer against row)"
    )
