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
from fedprune.tensors.lazy import LazyTensors, shapes_of

Shape = tuple[int, int]
View = Callable[[Layout, str, Tensor], Tensor]  # From a tensor to two dimensions


def _made(
    layout: Layout, of: Callable[[str, Shape], Tensor], view: View = as_rows
) -> dict[str, Tensor]:
    """Numbers that are made when a tensor's are asked for, from its name and its shape in a view.

    All at once take four bytes a weight.
    """
    shapes: dict[str, Shape] = {}
    for name in layout.prunable:
        rows, columns = view(layout, name, _meta(layout.shapes[name])).shape
        shapes[name] = rows, columns
    like = {name: _meta(shape) for name, shape in shapes.items()}
    return LazyTensors(like, lambda name: of(name, shapes[name]))


def _meta(shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")


def _tiles(
    layout: Layout, shape_of: Callable[[int, int], Shape], view: View = as_rows
) -> dict[str, Tensor]:
    """Numbers of the tiles of each tensor's (out, in) view; tiles at the edges are smaller."""
    starts: dict[str, int] = {}

    def numbered(name: str, shape: Shape) -> Tensor:
        high, wide = shape_of(*shape)
        down = torch.arange(shape[0], dtype=torch.int32) // max(1, high)
        right = torch.arange(shape[1], dtype=torch.int32) // max(1, wide)
        across = -(-shape[1] // max(1, wide))
        return starts[name] + down[:, None] * across + right[None, :]

    labels, start = _made(layout, numbered, view), 0
    for name, (rows, columns) in shapes_of(labels).items():
        high, wide = shape_of(rows, columns)
        starts[name] = start
        start += -(-rows // max(1, high)) * -(-columns // max(1, wide))
    return labels


def of_weights(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    """Every weight by itself."""
    return _tiles(layout, lambda _rows, _columns: (1, 1))


def of_patterns(layout: Layout, shape: Shape) -> dict[str, Tensor]:
    """Groups of M inputs, the second number of the shape."""
    rows = _tiles(layout, lambda _rows, _columns: (1, shape[1]), as_inputs)
    return _made(layout, lambda n, _: as_rows(layout, n, from_inputs(layout, n, rows[n])))


def of_blocks(layout: Layout, shape: Shape) -> dict[str, Tensor]:
    """Rectangles of rows and columns."""
    return _tiles(layout, lambda _rows, _columns: shape)


def of_rows(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    """All weights of one output."""
    return _tiles(layout, lambda _rows, columns: (1, columns))


def of_columns(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    """All weights that read one input."""
    return _tiles(layout, lambda rows, _columns: (rows, 1))


def of_groups(*kinds: str) -> Callable[[Layout, Shape], dict[str, Tensor]]:
    """The units of groups of these kinds: rows of the tensors that make, columns of what reads."""
    return lambda layout, _shape: _numbered(layout, kinds, ("row", "column"))


def of_channels(axis: str) -> Callable[[Layout], dict[str, Tensor]]:
    """The channels that weights make ("row") or read ("column"), numbered alike."""
    return lambda layout: _numbered(layout, ("channel",), (axis,))


def _numbered(layout: Layout, kinds: Sequence[str], axes: Sequence[str]) -> dict[str, Tensor]:
    """The units of groups of some kinds, in the tensors that they make or read."""
    found: dict[str, list[tuple[UnitSlice, int]]] = {}
    start = 0
    for group in (g for g in layout.structure.groups if g.kind in kinds):
        for part in (p for p in group.parts if p.axis in axes):
            found.setdefault(part.tensor, []).append((part, start))
        start += len(group.parts[0].index)

    def numbers(name: str, shape: Shape) -> Tensor:
        rows = torch.full(shape, -1, dtype=torch.int32)
        for part, first in found.get(name, ()):
            _number(rows, part, first)
        return rows

    return _made(layout, numbers)


def _number(rows: Tensor, part: UnitSlice, start: int) -> None:
    """Write the numbers of a part's units, from `start`, into an (out, in) tensor."""
    units, width = part.index.shape
    numbers = torch.arange(start, start + units, dtype=torch.int32)
    along = rows if part.axis == "row" else rows.t()
    along[part.index.reshape(-1)] = numbers.repeat_interleave(width)[:, None]


def _wholly(layout: Layout, units: Iterable[Sequence[str]]) -> dict[str, Tensor]:
    number_of = {name: number for number, tensors in enumerate(units) for name in tensors}
    return _made(layout, lambda n, s: torch.full(s, number_of.get(n, -1), dtype=torch.int32))


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
