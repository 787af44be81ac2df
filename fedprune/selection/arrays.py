"""Tensors of scores as arrays that are ranked, and what is kept of these as masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedprune.selection.ranking import Array, Bools, Layer
from fedprune.tensors.named import Masks


def ranking_layers(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor] | None,
    magnitude: Mapping[str, Tensor] | None,
    floor: int,
    part: tuple[float, float] = (0.0, 1.0),
) -> list[Layer]:
    """The arguments of a selection, checked, as arrays.

    `part` of each tensor stays, at least and at most.
    """
    if floor < 0:
        raise ValueError(f"floor must be 0 or more, got {floor}")
    _check("scores", scores, scores)
    if alive is not None:
        _check("alive", alive, scores)
    if magnitude is not None:
        _check("magnitude", magnitude, scores)
    return [
        layer_of(
            score,
            None if alive is None else alive[name],
            None if magnitude is None else magnitude[name],
            floor,
            part,
        )
        for name, score in scores.items()
    ]


def layer_of(
    score: Tensor,
    alive: Tensor | None,
    magnitude: Tensor | None,
    floor: int,
    part: tuple[float, float],
) -> Layer:
    """A tensor as it is ranked; see `ranking_layers`, which checks what is given here."""
    pool = None if alive is None else _flat(alive)
    living = score.numel() if pool is None else int(np.count_nonzero(pool))
    weights = None if magnitude is None else _flat(magnitude)
    # A product such as 0.1 * 30 may lie just beside the whole number that is meant.
    least = min(max(floor, math.ceil(part[0] * score.numel() - 1e-9)), living)
    most = max(least, math.floor(part[1] * score.numel() + 1e-9))
    cap = most if most < score.numel() else None
    return Layer(_flat(score), weights, pool, least, cap)


def _check(what: str, tensors: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit the scores, hold a NaN, or are masks without being boolean."""
    if tensors.keys() != scores.keys():
        odd = sorted(tensors.keys() ^ scores.keys())
        raise ValueError(f"{what} and scores differ in names: {odd[:3]} are on one side only")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{what} of {name!r}: {type(tensor).__name__}; allowed: a tensor")
        if tensor.shape != scores[name].shape:
            shapes = f"{tuple(tensor.shape)}, its scores {tuple(scores[name].shape)}"
            raise ValueError(f"{what} of {name!r} has shape {shapes}")
        if what == "alive" and tensor.dtype != torch.bool:
            raise ValueError(f"alive of {name!r} must be boolean, got {tensor.dtype}")
        if tensor.isnan().any():
            raise ValueError(f"{what} of {name!r}: NaN in {int(tensor.isnan().sum())} places")


def _flat(tensor: Tensor) -> Array:
    """The values in C order on the CPU, (size,); a view where that is possible."""
    tensor = tensor.detach().cpu().reshape(-1)
    flat: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return flat


def as_masks(scores: Mapping[str, Tensor], kept: Sequence[Bools]) -> Masks:
    """What is kept, flat by tensor, in the scores' shapes and on their devices."""
    return {
        name: torch.from_numpy(mask).reshape(score.shape).to(score.device)
        for (name, score), mask in zip(scores.items(), kept, strict=True)
    }


@dataclass(frozen=True)
class LayerSizes:
    """A layer of which only the numbers matter, as a `Layer` names them."""

    size: int
    gone: int
    most: int
    must: int


def layer_sizes(layer: Layer) -> LayerSizes:
    """The numbers of a layer."""
    return LayerSizes(layer.size, layer.gone, layer.most, layer.must)
