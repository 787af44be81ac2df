"""How masks are made of scores: who competes with whom, in which units, with which limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedprune.selection.unit_numbers import Shape


@dataclass(frozen=True)
class Rules:
    """What `fedprune.selection.select.select` goes by."""

    # a name in `SCOPES`. All but ``global`` give every tensor a count of its own: shares are
    # rounded by largest remainder, earlier tensors first; what a tensor's floor or its earlier
    # losses do not allow is spread over the others by the same rule.
    scope: str = "global"
    # the highest ranked weights of each tensor that stay whatever the ranking says (all that are
    # alive if they are fewer); 0 turns it off. It does not hold for units that are whole tensors.
    floor: int = 1
    unit: str = "weight"  # a name in `fedprune.selection.units.UNITS`
    unit_shape: Shape | None = None  # N and M of ``n:m``, rows and columns of ``block``
    pool: str = "mean"  # a name in `fedprune.selection.pools.POOLS`, for units larger than a weight
    min_density: float = 0.0  # part of every tensor that stays, as `floor`
    max_density: float = 1.0  # part of any tensor that may stay, at most
    # shell pattern to density, for the scope ``patterns``
    densities: Mapping[str, float] = field(default_factory=dict)
    # how much of the way to `max_density` and `densities` is gone, for schedules
    progress: float = 1.0

    @property
    def part(self) -> tuple[float, float]:
        """Parts of a tensor between which what stays of it lies, at this progress."""
        return self.min_density, 1.0 - self.progress * (1.0 - self.max_density)
