"""The score of a unit from the scores of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.selection.ranking import Array, Bools

Numbers = NDArray[np.int32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """How the scores of a unit's weights become the unit's score."""

    summary: str  # one line for ``--list``
    # what of a weight's score, float64, is put together
    of: Callable[[Array], Array] = lambda values: values
    # the score, from what was put together and the number of weights, by unit
    end: Callable[[Array, Ints], Array] = lambda total, _count: total
    best: bool = False  # the greatest counts, instead of the sum


@dataclass(frozen=True)
class UnitPiece:
    """The weights of one tensor that are alive and in a unit: their units and values, flat."""

    labels: Numbers
    values: Array


class Pooling:
    """Scores of units while the weights of one tensor after the other are put together."""

    def __init__(self, pool: str, units: int) -> None:
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r}: no such pool; allowed: {', '.join(POOLS)}")
        self.name, self.pool = pool, POOLS[pool]
        self.total = np.full(units, -np.inf) if self.pool.best else np.zeros(units)

    def add(self, piece: UnitPiece) -> None:
        """Put the weights of a tensor to it."""
        values = piece.values.astype(np.float64)
        if self.pool.best:
            np.maximum.at(self.total, piece.labels, values)
        else:
            with np.errstate(invalid="ignore"):
                _add(self.total, piece.labels, self.pool.of(values))

    def scores(self, count: Ints) -> Array:
        """The score of each unit, of so many weights each, (units,) float64."""
        scores = self.pool.end(self.total, count)
        if np.isnan(scores).any():
            raise ValueError(f"pool={self.name!r}: a unit has scores inf and -inf; allowed: max")
        return scores


def add_counts(total: Ints, labels: Numbers) -> None:
    """Add how many weights each unit has in a tensor, (units,)."""
    _add(total, labels, None)


def _add(total: Array, labels: Numbers, values: Array | None) -> None:
    """Add the values up by label, in float64. A tensor's labels are mostly a short range of all."""
    if len(labels):
        low = int(labels.min())
        part = np.bincount(labels - low, values)
        total[low : low + len(part)] += part


def _mean(total: Array, count: Ints) -> Array:
    mean: Array = total / np.maximum(count, 1)
    return mean


POOLS: dict[str, Pool] = {
    "mean": Pool("mean of the weights' scores: units of unequal size compare", end=_mean),
    "sum": Pool("sum of the weights' scores: what the unit is worth as a whole"),
    "abs-sum": Pool(
        "|sum of the scores|: with taylor_signed, what Molchanov et al. 2017 give a unit",
        end=lambda total, _: np.abs(total),
    ),
    "l2": Pool(
        "root of the mean square of the scores: sizes compare, signs are lost",
        of=lambda values: values**2,
        end=lambda total, count: np.sqrt(_mean(total, count)),
    ),
    "max": Pool("the best weight of the unit stands for it, whatever its size", best=True),
}


def unit_piece(label: Numbers, values: Array, alive: Bools | None) -> UnitPiece:
    """What of a tensor is alive and in a unit."""
    inside = label >= 0 if alive is None else alive & (label >= 0)
    return UnitPiece(label[inside], values[inside])
