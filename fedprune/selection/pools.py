"""The score of a unit from the scores of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.selection.ranking import Array, Bools

Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class Pool:
    """How the scores of a unit's weights become the unit's score: `score(pieces, units)`."""

    summary: str
    score: Callable[[Iterable[UnitPiece], int], Array]


@dataclass(frozen=True)
class UnitPiece:
    """The weights of one tensor that are alive and in a unit: their units and values, flat."""

    labels: Numbers
    values: Array


def counts_of(pieces: Iterable[UnitPiece], units: int) -> NDArray[np.int64]:
    """How many weights each unit has, (units,)."""
    total = np.zeros(units, dtype=np.int64)
    for piece in pieces:
        _add(total, piece.labels, None)
    return total


def _add(total: Array, labels: Numbers, values: Array | None) -> None:
    """Add the values up by label, in float64. A tensor's labels are mostly a short range of all."""
    if len(labels):
        low = int(labels.min())
        part = np.bincount(labels - low, None if values is None else values.astype(np.float64))
        total[low : low + len(part)] += part


def _sum(pieces: Iterable[UnitPiece], units: int) -> Array:
    total = np.zeros(units)
    for piece in pieces:
        _add(total, piece.labels, piece.values)
    return total


def _abs_sum(pieces: Iterable[UnitPiece], units: int) -> Array:
    total: Array = np.abs(_sum(pieces, units))
    return total


def _mean(pieces: Iterable[UnitPiece], units: int) -> Array:
    pieces = list(pieces)
    return _sum(pieces, units) / np.maximum(counts_of(pieces, units), 1)


def _l2(pieces: Iterable[UnitPiece], units: int) -> Array:
    squares = [UnitPiece(p.labels, p.values.astype(np.float64) ** 2) for p in pieces]
    root: Array = np.sqrt(_mean(squares, units))
    return root


def _max(pieces: Iterable[UnitPiece], units: int) -> Array:
    best = np.full(units, -np.inf)
    for piece in pieces:
        np.maximum.at(best, piece.labels, piece.values.astype(np.float64))
    return best


POOLS: dict[str, Pool] = {
    "mean": Pool("mean of the weights' scores: units of unequal size compare", _mean),
    "sum": Pool("sum of the weights' scores: what the unit is worth as a whole", _sum),
    "abs-sum": Pool(
        "|sum of the scores|: with taylor_signed, what Molchanov et al. 2017 give a unit", _abs_sum
    ),
    "l2": Pool("root of the mean square of the scores: sizes compare, signs are lost", _l2),
    "max": Pool("the best weight of the unit stands for it, whatever its size", _max),
}


def pooled(pool: str, pieces: Sequence[UnitPiece], units: int) -> Array:
    """The score of each unit, (units,) float64; of a unit without weights it means nothing.

    Raises:
        ValueError: no such pool, or infinities of both signs in one unit.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}: no such pool; allowed: {', '.join(POOLS)}")
    with np.errstate(invalid="ignore"):
        scores = POOLS[pool].score(pieces, units)
    if np.isnan(scores).any():
        raise ValueError(f"pool={pool!r}: a unit has scores inf and -inf; allowed: max")
    return scores


def unit_pieces(
    labels: Sequence[Numbers], values: Sequence[Array], alive: Sequence[Bools | None]
) -> list[UnitPiece]:
    """What of every tensor is alive and in a unit."""
    found = []
    for label, value, living in zip(labels, values, alive, strict=True):
        inside = label >= 0 if living is None else living & (label >= 0)
        found.append(UnitPiece(label[inside], value[inside]))
    return found
