"""What is removed together: single weights, patterns of them, or whole parts of a network.

A unit is a set of weights, of one tensor or of several; every weight carries the number of its
unit. Rows and columns are those of the (out, in) view of `fedprune.structure.layout.as_rows`.
The groups of n:m lie along the inputs of `fedprune.structure.layout.as_inputs`.
Structured units are masked here, producers' rows and readers' columns, and stay in the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.structure.families.catalog import FAMILIES
from fedprune.structure.groups import UnitSlice
from fedprune.structure.layout import (
    Layout,
    as_inputs,
    as_rows,
    from_inputs,
    from_rows,
)

Shape = tuple[int, int]


@dataclass(frozen=True)
class Unit:
    """A kind of unit.

    Attributes:
        summary: one line for ``--list``.
        labels: number of every weight's unit, (out, in) int32 by tensor, from the layout and the
            unit's shape; -1 = in no unit.
        tensors: how many tensors a unit is in: "one", or "many"; "all" of several, wholly.
        shape: what the two numbers of its shape mean; "" where it has none.
        along: where units overlap: the number of a second unit whose removal takes the weight with
            it, though the weight does not count for that unit's score.
    """

    summary: str
    labels: Callable[[Layout, Shape], dict[str, Tensor]]
    tensors: str = "one"
    shape: str = ""
    along: Callable[[Layout], dict[str, Tensor]] | None = None


def unit_labels(layout: Layout, unit: str, unit_shape: Shape | None = None) -> dict[str, Tensor]:
    """The number of the unit that every prunable weight is in.

    Numbers are unique over the model, from 0 up in model order; a unit of several tensors has the
    same number in all of them. -1 marks weights that are in no unit of the kind: they always stay.
    Under ``n:m`` the numbers are those of the groups of M inputs, of which N stay.

    Returns:
        An int32 tensor for every prunable tensor, of its shape.

    Raises:
        ValueError: no such unit, a shape it cannot have, or a model that has no such units.
    """
    kind = unit_kind(unit, unit_shape)
    rows = kind.labels(layout, unit_shape or (1, 1))
    if not any((label >= 0).any() for label in rows.values()):
        able = ", ".join(n for n, u in UNITS.items() if u.tensors == "one" or _has(layout, u))
        raise ValueError(
            f"unit={unit!r}: no {unit} was recognised in this model, which takes "
            f"{_NEEDED[unit]}; allowed: {able}"
        )
    return {name: from_rows(layout, name, label).contiguous() for name, label in rows.items()}


def _has(layout: Layout, kind: Unit) -> bool:
    return any(bool((label >= 0).any()) for label in kind.labels(layout, (1, 1)).values())


_FAMILIES = f"of a known architecture ({', '.join(FAMILIES)}) with prunable weights"
_NEEDED = {
    "head": f"an attention {_FAMILIES}",
    "neuron": f"a feed-forward layer {_FAMILIES}",
    "head-neuron": f"an attention or a feed-forward layer {_FAMILIES}",
    "channel": "a plain network that torch.fx can trace, with two prunable layers in a row",
    "sublayer": f"an attention or a feed-forward layer {_FAMILIES}",
    "expert": "a mixture of experts (mixtral, qwen2_moe, qwen3_moe) with prunable weights",
    "layer": "an nn.ModuleList with prunable weights in its elements",
}
"""What a model has to have for units of several tensors."""


def along_labels(layout: Layout, unit: str) -> dict[str, Tensor] | None:
    """Of every prunable weight the second unit that it goes with, -1 for none.

    The row of a channel's producer goes with the channel, and its columns are those of channels
    that it reads: a convolution's weight belongs to two.

    Returns:
        An int32 tensor for every prunable tensor, of its shape; None, where units do not overlap.
    """
    along = UNITS[unit].along
    if along is None:
        return None
    return {n: from_rows(layout, n, label).contiguous() for n, label in along(layout).items()}


def unit_count(labels: Mapping[str, Tensor]) -> int:
    """How many units such numbers tell apart: one more than the largest."""
    return 1 + max((int(label.max()) for label in labels.values()), default=-1)


def unit_kind(unit: str, unit_shape: Shape | None) -> Unit:
    """The kind of unit of that name.

    Raises:
        ValueError: there is none, or it cannot have this shape.
    """
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r}: no such unit; allowed: {', '.join(UNITS)}")
    wrong = shape_misfit(unit, unit_shape)
    if wrong:
        raise ValueError(wrong)
    return UNITS[unit]


def shape_misfit(unit: str, unit_shape: Shape | None) -> str:
    """What is wrong with the shape of a unit in one line, "" if nothing."""
    meaning = UNITS[unit].shape
    if not meaning:
        if unit_shape is None:
            return ""
        return f"unit-shape={list(unit_shape)}: unit {unit} has none; allowed: leave it out"
    if unit_shape is None:
        return f"unit-shape=None: unit {unit} needs one; allowed: {meaning}"
    first, second = unit_shape
    fits = 1 <= first < second if unit == "n:m" else first >= 1 and second >= 1
    return "" if fits else f"unit-shape={list(unit_shape)}: cannot be; allowed: {meaning}"


def removable(layout: Layout, unit: str, unit_shape: Shape | None = None) -> int:
    """How many weights are in units of the kind: no selection can remove more.

    Raises:
        ValueError: as `unit_labels`.
    """
    if unit == "weight":
        return sum(layout.shapes[name].numel() for name in layout.prunable)
    labels = unit_labels(layout, unit, unit_shape)
    along = along_labels(layout, unit) or labels
    able = sum(int(((label >= 0) | (along[name] >= 0)).sum()) for name, label in labels.items())
    return able - _staying_weights(layout, unit)


def _staying_weights(layout: Layout, unit: str) -> int:
    """The fewest weights that units have which stay whatever their scores."""
    mixtures = layout.structure.mixtures if unit == "expert" else ()
    sizes = [
        sorted(sum(layout.shapes[t].numel() for t in expert.tensors) for expert in m.experts)
        for m in mixtures
    ]
    return sum(sum(each[: m.least]) for each, m in zip(sizes, mixtures, strict=True))


def pattern_sparsity(n: int, m: int) -> float:
    """The sparsity of n:m where rows are multiples of m long: 1 - n / m."""
    return 1.0 - n / m


def pattern_counts(columns: int, n: int, m: int, sparsity: float) -> NDArray[np.int64]:
    """How many weights of each group of a row of so many inputs are gone.

    A last group that is shorter keeps its share of N, rounded up. Below the pattern's own sparsity
    groups lose that much less, rounded down: 2:4 goes by way of 3:4 (the decaying of N in Kao et
    al. 2022, arXiv 2209.07617, section 4).

    Raises:
        ValueError: the pattern removes less than `sparsity`.
    """
    way = sparsity / pattern_sparsity(n, m)
    if way > 1.0 + 1e-9:
        raise ValueError(
            f"sparsity={sparsity}: {n}:{m} keeps {n} of {m}; "
            f"allowed: at most {pattern_sparsity(n, m):g}"
        )
    starts = range(0, columns, m)
    groups = [min(m, columns - start) for start in starts]
    full = [size * (m - n) // m for size in groups]
    return np.array([math.floor(count * way + 1e-9) for count in full], dtype=np.int64)


def _counted(
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


def _weights(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    return _counted(layout, lambda _rows, _columns: (1, 1))


def _groups(layout: Layout, shape: Shape) -> dict[str, Tensor]:
    rows = _counted(layout, lambda _rows, _columns: (1, shape[1]), as_inputs)
    return {n: as_rows(layout, n, from_inputs(layout, n, label)) for n, label in rows.items()}


def _blocks(layout: Layout, shape: Shape) -> dict[str, Tensor]:
    return _counted(layout, lambda _rows, _columns: shape)


def _rows(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    return _counted(layout, lambda _rows, columns: (1, columns))


def _columns(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    return _counted(layout, lambda rows, _columns: (rows, 1))


def _none(layout: Layout) -> dict[str, Tensor]:
    def rows(name: str) -> Tensor:
        return as_rows(layout, name, torch.empty(layout.shapes[name], dtype=torch.int32))

    return {name: torch.full_like(rows(name), -1) for name in layout.prunable}


def _of_groups(*kinds: str) -> Callable[[Layout, Shape], dict[str, Tensor]]:
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


def _of_channels(axis: str) -> Callable[[Layout], dict[str, Tensor]]:
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


def _sublayers(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    return _wholly(layout, layout.structure.wholes)


def _experts(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    mixtures = layout.structure.mixtures
    return _wholly(layout, [expert.tensors for mixture in mixtures for expert in mixture.experts])


def staying_units(layout: Layout, unit: str) -> list[tuple[int, int, int]]:
    """Of which units, from the first number up to another, how many stay whatever their scores.

    A token is sent to so many experts of each mixture.
    """
    if unit != "expert":
        return []
    found, start = [], 0
    for mixture in layout.structure.mixtures:
        found.append((start, start + len(mixture.experts), mixture.least))
        start += len(mixture.experts)
    return found


def _layers(layout: Layout, _shape: Shape) -> dict[str, Tensor]:
    return _wholly(layout, [block.tensors for block in layout.structure.blocks])


_PATTERN = "N,M with 1 <= N < M (N of every M inputs stay)"

UNITS: dict[str, Unit] = {
    "weight": Unit("single weights", _weights),
    "n:m": Unit("N of every M weights along the input stay (--unit-shape N,M); of a convolution "
                "along its input channels, for each output channel and place of the kernel",
                _groups, "one", _PATTERN),
    "block": Unit("rectangles of weights (--unit-shape rows,columns)", _blocks, "one",
                  "rows,columns, both 1 or more"),
    "row": Unit("all weights of one output (of a convolution: of one output channel)", _rows),
    "column": Unit("all weights that read one input", _columns),
    "head": Unit("an attention head; under grouped queries a KV head with its queries' heads",
                 _of_groups("head"), "many"),
    "neuron": Unit("a neuron of a feed-forward layer, gate included", _of_groups("neuron"), "many"),
    "head-neuron": Unit("heads and neurons in one ranking, by worth a weight (--pool mean)",
                        _of_groups("head", "neuron"), "many"),
    "channel": Unit("a channel of a plain network: what reads it, with every layer that makes it",
                    lambda layout, _shape: _of_channels("column")(layout), "many", "",
                    _of_channels("row")),
    "expert": Unit("an expert of a mixture, with its row of the router; as many stay as a token is "
                   "sent to", _experts, "all"),
    "sublayer": Unit("a whole attention or feed-forward layer", _sublayers, "all"),
    "layer": Unit("a whole block of a stack", _layers, "all"),
}  # fmt: skip
