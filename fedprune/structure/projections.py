"""The layers that make the units of a sub-layer, and the one that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.structure.families.family import SubLayer
from fedprune.structure.layer_kinds import is_layer
from fedprune.structure.low_rank_layers import makes, reads
from fedprune.structure.matrices import out_in


@dataclass(frozen=True)
class Projection:
    """A layer that makes the units of a sub-layer or reads them; as `UnitSlice`, prunable or not.

    Of layers that make the units also the bias, which factors share, and what reads the input: the
    right factor, where there are two.
    """

    layer: nn.Module
    axis: str
    index: Tensor
    pieces: tuple[int, ...] = ()
    bias: nn.Parameter | None = None
    reader: nn.Module | None = None


def projections(module: nn.Module, sublayer: SubLayer) -> tuple[Projection, ...]:
    """The layers that make the units of a module, then the one that reads them.

    Counted by the shapes of the weights, so that a module which lost units has those that stayed;
    empty if the layers are not there (a removed sub-layer).
    """
    inner = dict(module.named_modules())
    column = reads(inner[sublayer.column]) if sublayer.column in inner else module
    outer: list[Any] = [inner[p] for p in sublayer.rows if p in inner]
    rows = [makes(layer) for layer in outer]
    if not all(map(is_layer, (column, *rows))) or not rows:
        return ()
    read = out_in(column)[1]
    made = [sublayer.pieces(out_in(layer)[0], read) for layer in rows]
    # With grouped queries (GQA) fewer keys are made than outputs are read: a unit is a KV group.
    units = min(read, *(min(pieces) for pieces in made)) // sublayer.width(module)
    making = (
        Projection(
            layer,
            "row",
            _index(units, pieces, sublayer.together),
            tuple(piece // units for piece in pieces) if len(pieces) > 1 else (),
            whole.bias,
            reads(whole),
        )
        for layer, pieces, whole in zip(rows, made, outer, strict=True)
    )
    return (*making, Projection(column, "column", _index(units, (read,))))


def _index(units: int, pieces: Sequence[int], together: bool = False) -> Tensor:
    """Which rows belong to each unit, (units, rows / units): of every piece an equal part."""
    if together:
        return torch.arange(sum(pieces)).view(units, -1)
    parts = torch.arange(sum(pieces)).split(list(pieces))
    return torch.cat([part.view(units, -1) for part in parts], dim=1)
