"""Which weights stay: how many go, from where, and the masks that say so.

The counts are exact under any ties: nothing here cuts scores at a threshold but `above`, whose
business that is. What ranks below what is said in `ranking`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fedprune.pruning.ranking import Array, Bools, Layer, drop
from fedprune.tensors import Masks


@dataclass(frozen=True)
class Scope:
    """Who competes with whom: `keep(layers, total, sparsity)` gives the kept weights by layer."""

    keep: Callable[[Sequence[Layer], int, float], list[Bools]]
    summary: str


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    alive: Mapping[str, Tensor] | None = None,
    magnitude: Mapping[str, Tensor] | None = None,
    floor: int = 1,
) -> Masks:
    """Masks (True = kept) that remove exactly floor(sparsity * n + 1/2) of the original n weights.

    Args:
        scores: importance by name, any shapes and float types; infinities rank as one expects.
        sparsity: fraction removed of all n entries, those removed before included.
        scope: a name in `SCOPES`. Under ``layer`` the counts sparsity * n_t are rounded by largest
            remainder, earlier tensors first; what a tensor's floor or its earlier losses do not
            allow is spread over the others by the same rule, in proportion to their sizes.
        alive: what earlier masks kept. What they removed counts and never comes back.
        magnitude: breaks ties between scores: the smaller absolute value goes first. Ties that are
            left go by position, the earlier first.
        floor: the highest ranked weights of each tensor that stay whatever the ranking says (all
            that are alive if they are fewer); 0 turns it off.

    Returns:
        A boolean mask for every score, of the same shape and on the same device.

    Raises:
        ValueError: a NaN; a sparsity or scope that does not exist; tensors that do not match; a
            count below what `alive` removed already or above what the floors allow.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}: allowed are {', '.join(SCOPES)}")
    layers = _layers(scores, alive, magnitude, floor)
    n = sum(layer.size for layer in layers)
    total = math.floor(sparsity * n + 0.5)
    gone = sum(layer.gone for layer in layers)
    most = sum(layer.most for layer in layers)
    if gone > total:
        raise ValueError(f"cannot remove {total} of {n} weights: {gone} are removed already")
    if total > most:
        raise ValueError(f"cannot remove {total} of {n} weights: floor {floor} allows {most}")
    return _as_masks(scores, SCOPES[scope].keep(layers, total, sparsity))


def above(
    scores: Mapping[str, Tensor],
    threshold: float,
    *,
    alive: Mapping[str, Tensor] | None = None,
    magnitude: Mapping[str, Tensor] | None = None,
    floor: int = 1,
) -> Masks:
    """Masks that keep what is alive and scores above an absolute threshold, however many that is.

    The other arguments, the result and the errors are those of `select`. A tensor that would keep
    fewer than `floor` weights keeps its highest ranked ones.
    """
    if math.isnan(threshold):
        raise ValueError("threshold is NaN")
    layers = _layers(scores, alive, magnitude, floor)
    return _as_masks(scores, [_above(layer, threshold) for layer in layers])


def _above(layer: Layer, threshold: float) -> Bools:
    kept = (
        layer.scores > threshold
        if layer.alive is None
        else layer.alive & (layer.scores > threshold)
    )
    return kept if np.count_nonzero(kept) >= layer.least else _bare(layer)


def _together(layers: Sequence[Layer], total: int, _sparsity: float) -> list[Bools]:
    """All weights in one ranking.

    A tensor that the ranking would push below its floor is pinned there and the others make up for
    it. That lowers nobody's rank, so what is pinned stays pinned.
    """
    pinned: dict[int, Bools] = {}
    while True:
        free = {i: layer for i, layer in enumerate(layers) if i not in pinned}
        count = total - sum(layers[i].most for i in pinned) - sum(x.gone for x in free.values())
        kept = dict(zip(free, drop(list(free.values()), count), strict=True))
        short = [i for i in free if np.count_nonzero(kept[i]) < layers[i].least]
        if not short:
            return [kept[i] if i in kept else pinned[i] for i in range(len(layers))]
        pinned |= {i: _bare(layers[i]) for i in short}


def _apart(layers: Sequence[Layer], total: int, sparsity: float) -> list[Bools]:
    """Every tensor a ranking of its own."""
    counts = _counts(layers, total, sparsity)
    return [
        drop([layer], count - layer.gone)[0] for layer, count in zip(layers, counts, strict=True)
    ]


SCOPES: dict[str, Scope] = {
    "global": Scope(_together, "all prunable weights compete with each other"),
    "layer": Scope(_apart, "weights compete within their tensor, each loses the same fraction"),
}


def _counts(layers: Sequence[Layer], total: int, sparsity: float) -> list[int]:
    """How many weights of each tensor are gone in the end, `total` in all.

    Tensors whose share lies outside [gone, most] are fixed at that limit, those on the side that
    weighs more first, and the rest is shared out again among the others.
    """
    fixed: dict[int, int] = {}
    shares = [Fraction(sparsity * layer.size) for layer in layers]
    while True:
        free = [i for i in range(len(layers)) if i not in fixed]
        rest = total - sum(fixed.values())
        if fixed:
            size = sum(layers[i].size for i in free)
            shares = [Fraction(rest * layers[i].size, max(size, 1)) for i in free]
        wanted = dict(zip(free, _apportion(shares, rest), strict=True))
        limits = {i: min(max(wanted[i], layers[i].gone), layers[i].most) for i in free}
        excess = sum(limits.values()) - rest
        if excess == 0:
            return [(fixed | limits)[i] for i in range(len(layers))]
        fixed |= {i: limits[i] for i in free if (limits[i] - wanted[i]) * excess > 0}


def _apportion(shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers near the shares that sum to `total`: largest remainders first, then earlier."""
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _bare(layer: Layer) -> Bools:
    """The layer's highest ranked weights, as few as its floor allows."""
    return drop([layer], layer.most - layer.gone)[0]


def _layers(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor] | None,
    magnitude: Mapping[str, Tensor] | None,
    floor: int,
) -> list[Layer]:
    """The arguments, checked, as arrays."""
    if floor < 0:
        raise ValueError(f"floor must be 0 or more, got {floor}")
    _check("scores", scores, scores)
    if alive is not None:
        _check("alive", alive, scores)
    if magnitude is not None:
        _check("magnitude", magnitude, scores)
    layers = []
    for name, score in scores.items():
        pool = None if alive is None else _flat(alive[name])
        living = score.numel() if pool is None else int(np.count_nonzero(pool))
        weights = None if magnitude is None else _flat(magnitude[name])
        layers.append(Layer(_flat(score), weights, pool, min(floor, living)))
    return layers


def _check(what: str, tensors: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit the scores, hold a NaN, or are masks without being boolean."""
    if tensors.keys() != scores.keys():
        odd = sorted(tensors.keys() ^ scores.keys())
        raise ValueError(f"{what} and scores differ in names: {odd[:3]} are on one side only")
    for name, tensor in tensors.items():
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


def _as_masks(scores: Mapping[str, Tensor], kept: Sequence[Bools]) -> Masks:
    return {
        name: torch.from_numpy(mask).reshape(score.shape).to(score.device)
        for (name, score), mask in zip(scores.items(), kept, strict=True)
    }
