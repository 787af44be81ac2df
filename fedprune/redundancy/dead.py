"""Units that do nothing: never active on any client, or read by no layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.redundancy.moments import Inputs
from fedprune.structure.layout import Layout, as_rows

UnitsOfLayers = dict[str, tuple[int, ...]]
"""Numbers of units by the path of their group."""


def never_active(layout: Layout, inputs: Inputs) -> UnitsOfLayers:
    """Units whose value was 0 in every row of every client: Σ a² of what reads them is exactly 0.

    Without them the model says the same of everything that was summed over. Of other data nothing
    is known: a unit that never fired may fire there.
    """
    found: UnitsOfLayers = {}
    for group in layout.structure.groups:
        readers = [part for part in group.parts if part.axis == "column"]
        if all(inputs.rows.get(part.tensor) for part in readers):
            squares = [inputs.products[p.tensor].diagonal()[p.index] for p in readers]
            found[group.path] = _true((torch.cat(squares, dim=1) == 0).all(dim=1))
    return {path: units for path, units in found.items() if units}


def never_read(layout: Layout, weights: Mapping[str, Tensor]) -> UnitsOfLayers:
    """Units whose outgoing weights are all exactly 0: without them nothing changes, ever."""
    found: UnitsOfLayers = {}
    for group in layout.structure.groups:
        readers = [part for part in group.parts if part.axis == "column"]
        lines = [(as_rows(layout, p.tensor, weights[p.tensor]) == 0).all(dim=0) for p in readers]
        silent = [line[p.index].all(dim=1) for line, p in zip(lines, readers, strict=True)]
        found[group.path] = _true(torch.stack(silent).all(dim=0))
    return {path: units for path, units in found.items() if units}


def _true(flags: Tensor) -> tuple[int, ...]:
    return tuple(flags.nonzero().flatten().tolist())
