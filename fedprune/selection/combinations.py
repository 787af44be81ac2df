"""Which scopes, units and limits of density fit together, and why others are refused."""

from __future__ import annotations

from fedprune.selection.scopes import SCOPES
from fedprune.selection.units import UNITS


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
