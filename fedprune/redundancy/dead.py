"""Units that do nothing: never active on any client, or read by nobody."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedprune.pruning.layout import Layout
from fedprune.redundancy.moments import Inputs
from fedprune.redundancy.units import outgoing, reader_of

Units = dict[str, tuple[int, ...]]
"""Numbers of units by the path of their group."""


def never_active(layout: Layout, inputs: Inputs) -> Units:
    """Units whose value was 0 in every row of every client: Σ a² of what reads them is exactly 0.

    Without them the model says the same of everything that was summed over. Of other data nothing
    is known: a unit that never fired may fire there.
    """
    found: Units = {}
    for group in layout.structure.groups:
        reader = reader_of(group)
        if reader.tensor in inputs.products and inputs.rows[reader.tensor]:
            squares = inputs.products[reader.tensor].diagonal()[reader.index]
            found[group.path] = _true((squares == 0).all(dim=1))
    return {path: units for path, units in found.items() if units}


def never_read(layout: Layout, weights: Mapping[str, Tensor]) -> Units:
    """Units whose outgoing weights are all exactly 0: without them nothing changes, ever."""
    found = {
        group.path: _true((outgoing(group, layout, weights) == 0).flatten(1).all(dim=1))
        for group in layout.structure.groups
    }
    return {path: units for path, units in found.items() if units}


def _true(flags: Tensor) -> tuple[int, ...]:
    return tuple(flags.nonzero().flatten().tolist())
