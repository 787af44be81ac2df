"""Rankings side by side: rows or columns of a tensor, or groups of N:M along its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.selection.patterns import pattern_counts
from fedprune.selection.ranking import Array, Bools, Layer, drop
from fedprune.selection.unit_numbers import Shape
from fedprune.structure.layout import Layout, as_inputs, as_rows, from_inputs, from_rows

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RowRankings:
    """Rankings side by side, one a row: arrays (rows, columns), as those of a `Layer`."""

    scores: Array
    magnitude: Array | None
    alive: Bools | None

    def changed(self, change: Callable[[Array], Array]) -> RowRankings:
        """The same change made to every array."""
        magnitude = None if self.magnitude is None else change(self.magnitude)
        alive = None if self.alive is None else change(self.alive)
        return RowRankings(change(self.scores), magnitude, alive)

    def of(self, rows: slice | _Ints) -> RowRankings:
        """Those of some rows."""
        return self.changed(lambda x: x[rows])

    @property
    def gone(self) -> _Ints:
        """How many of each row were removed before, (rows,)."""
        rows, columns = self.scores.shape[:2]
        if self.alive is None:
            return np.zeros(rows, np.int64)
        gone: _Ints = columns - np.count_nonzero(self.alive, axis=1).astype(np.int64)
        return gone


def left_of(table: RowRankings, counts: _Ints) -> Bools:
    """What is left of every row when so many of it are gone, the lowest ranked first.

    `counts`: (rows,), weights gone in the end, at least those gone before.

    Returns:
        (rows, columns), True = kept.
    """
    rows, columns = table.scores.shape[:2]
    kept = np.empty((rows, columns), bool)
    # Copies are made of what is looked at, so not of all weights at once.
    step = max(1, 2**20 // max(1, columns))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        kept[part] = _left_of(table.of(part), counts[part])
    return kept


def _left_of(table: RowRankings, counts: _Ints) -> Bools:
    """The same of a few rows: cut at the score where each has lost so many, if none is tied there.

    Selection in linear time, as in `fedprune.selection.ranking`; rows whose cut lies between equal
    scores are sorted, by magnitude and position too.
    """
    columns = table.scores.shape[1]
    scores = table.scores
    if table.alive is not None:
        scores = np.where(table.alive, scores, -np.inf)  # what is gone leads
    cuts = np.full((len(scores), 1), -np.inf, scores.dtype)
    for count in np.unique(counts[counts > 0]):
        which = np.flatnonzero(counts == count)
        cuts[which, 0] = np.partition(scores[which], count - 1, axis=1)[:, count - 1]
    kept: Bools = scores > cuts
    kept[counts == 0] = True
    tied = np.flatnonzero(columns - np.count_nonzero(kept, axis=1) != counts)
    if len(tied):
        kept[tied] = _sorted_out(table.of(tied), counts[tied])
    return kept


def _sorted_out(table: RowRankings, counts: _Ints) -> Bools:
    """The same by sorting every row."""
    keys = [table.scores]
    if table.magnitude is not None:
        keys.insert(0, np.abs(table.magnitude))
    if table.alive is not None:
        keys.append(table.alive)  # the last key decides first: what is gone leads
    order, kept = np.lexsort(keys, axis=-1), np.empty(table.scores.shape, bool)
    np.put_along_axis(kept, order, np.arange(order.shape[-1]) >= counts[:, None], axis=-1)
    return kept


def within_lines(layout: Layout, name: str, layer: Layer, count: int, lines: str) -> Bools:
    """What is left of a tensor that loses `count` weights in all, as many in every line.

    Where the count is no multiple of the lines, earlier ones lose one more; lines that lost more
    before keep the rest. A tensor without rows is one ranking. Flat, in C order.

    `lines`: "row": those of one output; "column": those that read one input.
    """
    if len(layout.shapes[name]) < 2:
        return drop([layer], count - layer.gone)[0]
    across = lines == "column"
    table = _table(layout, name, layer, as_columns if across else as_rows)
    kept = left_of(table, _evenly(table.gone, count, table.scores.shape[1]))
    return _flat(layout, name, np.ascontiguousarray(kept.T) if across else kept)


def as_columns(layout: Layout, name: str, tensor: Tensor) -> Tensor:
    """A tensor shaped like a prunable one as (in, out)."""
    return as_rows(layout, name, tensor).t().contiguous()


def _evenly(gone: _Ints, total: int, most: int) -> _Ints:
    """Counts as equal as what is gone allows, `total` in all."""
    low, high = 0, most
    while low < high:  # the highest level that does not remove too much
        middle = (low + high + 1) // 2
        if int(np.maximum(gone, middle).sum()) <= total:
            low = middle
        else:
            high = middle - 1
    counts = np.maximum(gone, low)
    one_more = np.flatnonzero(gone <= low)[: total - int(counts.sum())]
    counts[one_more] += 1
    return counts


def patterned(layout: Layout, name: str, layer: Layer, unit_shape: Shape, sparsity: float) -> Bools:
    """What is left of a tensor of which N of every M weights along the input stay.

    Flat, in C order. Rows are those of `fedprune.structure.layout.as_inputs`; the last group of
    each may be shorter, see `fedprune.selection.units`.

    Raises:
        ValueError: the pattern keeps fewer weights than the tensor's floor, or some group lost more
            before than the pattern removes.
    """
    n, m = unit_shape
    table = _table(layout, name, layer, as_inputs)
    rows, columns = table.scores.shape[:2]
    counts = pattern_counts(columns, n, m, sparsity)
    left = layer.size - rows * int(counts.sum())
    if left < layer.least:
        raise ValueError(
            f"cannot keep {n}:{m} of {name!r}: {left} of {layer.size} weights stay, "
            f"its floor is {layer.least}"
        )
    edge = columns // m * m
    kept = [_grouped(table.changed(lambda x: x[:, :edge]), m, counts[: edge // m], name)]
    if edge < columns:
        last = table.changed(lambda x: x[:, edge:])
        kept.append(_grouped(last, columns - edge, counts[-1:], name))
    masks = from_inputs(layout, name, torch.from_numpy(np.concatenate(kept, axis=1)))
    flat: Bools = masks.reshape(-1).numpy()
    return flat


def _grouped(table: RowRankings, size: int, counts: _Ints, name: str) -> Bools:
    """What is left of rows whose groups of `size` neighbours lose so many each, (rows, columns)."""
    groups = table.changed(lambda x: x.reshape(-1, size))
    lost = np.tile(counts, len(table.scores))
    if (groups.gone > lost).any():
        raise ValueError(f"alive of {name!r}: a group has lost more than its pattern removes")
    return left_of(groups, lost).reshape(table.scores.shape)


def _table(
    layout: Layout, name: str, layer: Layer, of: Callable[[Layout, str, Tensor], Tensor] = as_rows
) -> RowRankings:
    """The layer's arrays in the (out, in) view, or another one."""

    def view(array: Array) -> Array:
        tensor = torch.from_numpy(array).reshape(layout.shapes[name])
        rows: Array = of(layout, name, tensor).numpy()
        return rows

    return RowRankings(layer.scores, layer.magnitude, layer.alive).changed(view)


def _flat(layout: Layout, name: str, rows: Bools) -> Bools:
    flat: Bools = from_rows(layout, name, torch.from_numpy(rows)).reshape(-1).numpy()
    return flat
