"""What is removed together: single weights, patterns of them, or whole parts of a network.

A unit is a set of weights, of one tensor or of several; every weight carries the number of its
unit. Rows and columns are those of the (out, in) view of `fedprune.structure.layout.as_rows`.
The groups of n:m lie along the inputs of `fedprune.structure.layout.as_inputs`.
Structured units are masked here, producers' rows and readers' columns, and stay in the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.selection.unit_numbers import (
    Shape,
    of_blocks,
    of_channels,
    of_columns,
    of_experts,
    of_groups,
    of_layers,
    of_patterns,
    of_rows,
    of_sublayers,
    of_weights,
)
from fedprune.structure.families.catalog import FAMILIES
from fedprune.structure.layout import Layout, from_rows
from fedprune.tensors.lazy import LazyTensors
from fedprune.tensors.named import Tensors


@dataclass(frozen=True)
class Unit:
    """A kind of unit."""

    summary: str  # one line for ``--list``
    # number of every weight's unit, (out, in) int32 by tensor, from the layout and the unit's
    # shape; -1 = in no unit
    labels: Callable[[Layout, Shape], dict[str, Tensor]]
    # how many tensors a unit is in: "one", or "many"; "all" of several, wholly
    tensors: str = "one"
    shape: str = ""  # what the two numbers of its shape mean; "" where it has none
    # where units overlap: the number of a second unit whose removal takes the weight with it,
    # though the weight does not count for that unit's score
    along: Callable[[Layout], dict[str, Tensor]] | None = None


def unit_labels(layout: Layout, unit: str, unit_shape: Shape | None = None) -> dict[str, Tensor]:
    """The number of the unit that every prunable weight is in.

    Numbers are unique over the model, from 0 up in model order; a unit of several tensors has the
    same number in all of them. -1 marks weights that are in no unit of the kind: they always stay.
    Under ``n:m`` the numbers are those of the groups of M inputs, of which N stay.

    Returns:
        An int32 tensor for every prunable tensor, of its shape, made when it is asked for.

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
    return _in_shape(layout, rows)


def _in_shape(layout: Layout, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers in the shapes of their tensors, made when they are asked for."""
    like = {n: torch.empty(layout.shapes[n], dtype=torch.int32, device="meta") for n in rows}
    return LazyTensors(like, lambda n: from_rows(layout, n, rows[n]).contiguous())


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
        As `unit_labels`; None, where units do not overlap.
    """
    along = UNITS[unit].along
    if along is None:
        return None
    return _in_shape(layout, along(layout))


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
    """How many weights are in units of the kind: no selection can remove more."""
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


_PATTERN = "N,M with 1 <= N < M (N of every M inputs stay)"

UNITS: dict[str, Unit] = {
    "weight": Unit("single weights", of_weights),
    "n:m": Unit("N of every M weights along the input stay (--unit-shape N,M); of a convolution "
                "along its input channels, for each output channel and place of the kernel",
                of_patterns, "one", _PATTERN),
    "block": Unit("rectangles of weights (--unit-shape rows,columns)", of_blocks, "one",
                  "rows,columns, both 1 or more"),
    "row": Unit("all weights of one output (of a convolution: of one output channel)", of_rows),
    "column": Unit("all weights that read one input", of_columns),
    "head": Unit("an attention head; under grouped queries a KV head with its queries' heads",
                 of_groups("head"), "many"),
    "neuron": Unit("a neuron of a feed-forward layer, gate included", of_groups("neuron"), "many"),
    "head-neuron": Unit("heads and neurons in one ranking, by worth a weight (--pool mean)",
                        of_groups("head", "neuron"), "many"),
    "channel": Unit("a channel of a convolutional or linear network, in every layer with it",
                    lambda layout, _shape: of_channels("column")(layout), "many", "",
                    of_channels("row")),
    "expert": Unit("an expert of a mixture, with its row of the router; as many stay as a token is "
                   "sent to", of_experts, "all"),
    "sublayer": Unit("a whole attention or feed-forward layer", of_sublayers, "all"),
    "layer": Unit("a whole block of a stack", of_layers, "all"),
}  # fmt: skip


def by_position(layout: Layout, unit: str, unit_shape: Shape | None = None) -> Tensors:
    """A score of every prunable weight that falls with the place of its unit: 1 at first, above 0.

    Units are counted within their tensor, so that the same part of every tensor comes first; those
    that are whole tensors, as blocks of a stack, over the model. Weights in no unit have 1.

    Raises:
        ValueError: the model has no such units.
    """
    origin = layout.origin
    if origin is not None:
        return layout.from_origin(by_position(origin.layout, unit, unit_shape))
    labels = unit_labels(layout, unit, unit_shape)
    found = {n: label[label >= 0].unique() for n, label in labels.items()}
    if all(len(units) <= 1 for units in found.values()):
        found = dict.fromkeys(found, torch.cat(list(found.values())).unique())
    return {n: _falling(label, found[n]) for n, label in labels.items()}


def _falling(label: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    place = torch.searchsorted(units, label.clamp(min=0)).double()
    return torch.where(label >= 0, 1.0 - place / max(1, len(units)), 1.0)
