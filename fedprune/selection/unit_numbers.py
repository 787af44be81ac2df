"""The number of the unit that every prunable weight is in, for each kind of unit.

Numbers are written in the (out, in) view of `fedprune.structure.layout.as_rows`, int32, unique over
the model, from 0 up in model order; -1 = in no unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fedprune.structure.groups import UnitSlice
from fedprune.structure.layout import Layout, as_inputs, as_rows, from_inputs

Shape = tuple[int, int]


def _tiles(
    layout: Layout,
    shape_of: Callable[[int, int], Shape],
    view: Callable[[Layout, str, Tensor], Tensor] = as_rows,
) -> dict[str, Tensor]:
    """Numbers of the tiles of each tensor's (out, in) view; tiles at the edges are smaller."""
    labels: dict[str, Tensor] = {}
    start = 0
    for name in layout.prunable:
        rows, columns = view(layout, name, torch.empty(layout.shapes[name], device="meta")).shape
        high, wide = shape_of(rows, columns)
        across = -(-columns // max(1, wide))
        down = torch.arange(rows, dtype=torch.int32) // max(1, high) * across
        right = torch.arange(columns, dtype=torch.int32) // max(1, wide)
        labels[name] = start + down[:, None] + right[None, :]
        start += -(-rows // max(1, high)) * across
    return labels


def of_weights(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    """Every weight by itself."""
    return _tiles(layout, lambda _rows, _columns: (1, 1))


def of_patterns(layout: Layout, shape: Shape) -> dict[str, Tensor]:
    """Groups of M inputs, the second number of the shape."""
    rows = _tiles(layout, lambda _rows, _columns: (1, shape[1]), as_inputs)
    return {n: as_rows(layout, n, from_inputs(layout, n, label)) for n, label in rows.items()}


def of_blocks(layout: Layout, shape: Shape) -> dict[str, Tensor]:
    """Rectangles of rows and columns."""
    return _tiles(layout, lambda _rows, _columns: shape)


def of_rows(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    """All weights of one output."""
    return _tiles(layout, lambda _rows, columns: (1, columns))


def of_columns(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    """All weights that read one input."""
    return _tiles(layout, lambda rows, _columns: (rows, 1))


def _none(layout: Layout) -> dict[str, Tensor]:
    def rows(name: str) -> Tensor:
        return as_rows(layout, name, torch.empty(layout.shapes[name], dtype=torch.int32))

    return {name: torch.full_like(rows(name), -1) for name in layout.prunable}


def of_groups(*kinds: str) -> Callable[[Layout, Shape], dict[str, Tensor]]:
    """The units of groups of these kinds: rows of the tensors that make, columns of what reads."""

    def labels(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
        found = _none(layout)
        start = 0
        for group in layout.structure.groups:
            if group.kind not in kinds:
                continue
            for part in group.parts:
                _number(found[part.tensor], part, start)
            start += len(group.parts[0].index)
        return found

    return labels


def of_channels(axis: str) -> Callable[[Layout], dict[str, Tensor]]:
    """The channels that weights make ("row") or read ("column"), numbered alike."""

    def labels(layout: Layout) -> dict[str, Tensor]:
        found = _none(layout)
        start = 0
        for group in layout.structure.groups:
            if group.kind != "channel":
                continue
            for part in group.parts:
                if part.axis == axis:
                    _number(found[part.tensor], part, start)
            start += len(group.parts[0].index)
        return found

    return labels


def _number(rows: Tensor, part: UnitSlice, start: int) -> None:
    """Write the numbers of a part's units, from `start`, into an (out, in) tensor."""
    units, width = part.index.shape
    numbers = torch.arange(start, start + units, dtype=torch.int32)
    along = rows if part.axis == "row" else rows.t()
    along[part.index.reshape(-1)] = numbers.repeat_interleave(width)[:, None]


def _wholly(layout: Layout, units: Iterable[Sequence[str]]) -> dict[str, Tensor]:
    found = _none(layout)
    for number, tensors in enumerate(units):
        for name in tensors:
            found[name].fill_(number)
    return found


def of_sublayers(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    """Attention and feed-forward layers, whole."""
    return _wholly(layout, layout.structure.wholes)


def of_experts(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    """Experts of mixtures, each with its row of the router."""
    mixtures = layout.structure.mixtures
    return _wholly(layout, [expert.tensors for mixture in mixtures for expert in mixture.experts])


def of_layers(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    """Blocks of a stack."""
    return _wholly(layout, [block.tensors for block in layout.structure.blocks])
