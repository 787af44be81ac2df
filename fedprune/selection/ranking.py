"""What ranks below what: score, then magnitude, then position, the lowest to be removed first.

The position is a weight's place in the flat view: the layers in their order, each in C order. The
score at the cut is found by selection in linear time (`fedprune.selection.cut`). Only weights tied
with it are looked at again, by their magnitudes and then by their places. A score compared with a
threshold would remove all of the tied, or none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedprune.selection.cut import cut_at

Array = NDArray[Any]
Bools = NDArray[np.bool_]


class Unreachable(ValueError):
    """More or fewer weights would have to go than can; it knows the nearest count that can.

    Attributes:
        nearest: weights that are gone at most, or at least.
        size: weights in all.
    """

    def __init__(self, message: str, nearest: int, size: int) -> None:
        super().__init__(message)
        self.nearest, self.size = nearest, size


@dataclass(frozen=True)
class Layer:
    """One tensor in the ranking; its arrays are flat in C order, (size,)."""

    scores: Array
    magnitude: Array | None  # for all layers or for none
    alive: Bools | None  # None: all of them, which spares a mask
    least: int  # how many weights have to stay
    cap: int | None = None  # how many may stay; None: all

    @property
    def size(self) -> int:
        """How many weights the tensor had originally."""
        return len(self.scores)

    @property
    def gone(self) -> int:
        """How many were removed before."""
        return 0 if self.alive is None else self.size - int(np.count_nonzero(self.alive))

    @property
    def most(self) -> int:
        """How many may be gone in the end."""
        return self.size - self.least

    @property
    def must(self) -> int:
        """How many have to be gone in the end, at least."""
        return self.gone if self.cap is None else max(self.gone, self.size - self.cap)


def drop(
    layers: Sequence[Layer],
    count: int,
    scores: Sequence[Array] | None = None,
    sizes: Sequence[Array] | None = None,
) -> list[Bools]:
    """What is alive in the layers, without the `count` lowest ranked of all of them.

    `scores`: instead of those in the layers; gone through several times, one after the other.

    Returns:
        New arrays, (size,) each.
    """
    alive = [layer.alive for layer in layers]
    if count == 0:
        return [
            np.ones(x.size, bool) if a is None else a.copy()
            for x, a in zip(layers, alive, strict=True)
        ]
    keys = [layer.scores for layer in layers] if scores is None else scores
    kept, tied, out = _split(keys, alive, count)
    if out == sum(int(np.count_nonzero(t)) for t in tied):
        return kept
    if sizes is None:
        sizes = [layer.magnitude for layer in layers if layer.magnitude is not None]
    if sizes:
        kept, tied, out = _with_larger(kept, tied, sizes, out)
    return _union(kept, _without_first(tied, out))


def _with_larger(
    kept: Sequence[Bools], tied: Sequence[Bools], magnitudes: Sequence[Array], out: int
) -> tuple[list[Bools], list[Bools], int]:
    """What is kept with those tied that are larger than the cut, and those tied that are on it.

    Of the magnitudes those of the tied are copied: often few, where all are as much as a model.
    """
    few = [np.abs(m[t]) for m, t in zip(magnitudes, tied, strict=True)]
    larger, equal, out = _split(few, [None] * len(few), out)
    for mask, pool, more in zip(kept, tied, larger, strict=True):
        mask[pool] = more
    for pool, still in zip(tied, equal, strict=True):
        pool[pool] = still
    return list(kept), list(tied), out


def ranked_together(
    layers: Sequence[Layer],
    total: int,
    scores: Sequence[Array] | None = None,
    sizes: Sequence[Array] | None = None,
) -> list[Bools]:
    """What is left of the layers when `total` weights are gone, all of them in one ranking.

    A layer that the ranking would leave outside of its limits is fixed at the limit, and the others
    make up for it; those on the side that weighs more first, since that moves the cut of the others
    away from no limit they kept.

    `total`: weights gone in the end, those gone before included; between the sums of `must` and of
    `most`.
    """

    def left_of(those: Sequence[int], count: int) -> list[Bools]:
        own = (None if x is None else Made(those, x.__getitem__) for x in (scores, sizes))
        return drop([layers[i] for i in those], count, *own)

    fixed: dict[int, Bools] = {}
    while True:
        free = {i: layer for i, layer in enumerate(layers) if i not in fixed}
        before = sum(layers[i].size - int(np.count_nonzero(m)) for i, m in fixed.items())
        count = total - before - sum(x.gone for x in free.values())
        kept = dict(zip(free, left_of(list(free), count), strict=True))
        gone = {i: free[i].size - int(np.count_nonzero(m)) for i, m in kept.items()}
        moved = {i: min(max(gone[i], x.must), x.most) - gone[i] for i, x in free.items()}
        excess = sum(moved.values())
        wrong = [i for i, by in moved.items() if by * excess > 0 or (by and not excess)]
        if not wrong:
            return [fixed[i] if i in fixed else kept[i] for i in range(len(layers))]
        for i in wrong:
            fixed[i] = left_of([i], gone[i] + moved[i] - layers[i].gone)[0]


def _split(
    keys: Sequence[Array], pools: Sequence[Bools | None], count: int
) -> tuple[list[Bools], list[Bools], int]:
    """The pools cut at their `count`-th lowest key.

    Returns:
        The members above the cut, the members equal to it, and how many of the equal belong to
        the `count` lowest.
    """
    cut, out = cut_at(keys, pools, count)
    both = [(_within(k > cut, p), _within(k == cut, p)) for k, p in zip(keys, pools, strict=True)]
    return [over for over, _ in both], [equal for _, equal in both], out


def _without_first(pools: Sequence[Bools], count: int) -> list[Bools]:
    """The pools without their first `count` members, in place."""
    for pool in pools:
        gone = min(count, int(np.count_nonzero(pool)))
        # The shortest start of the pool that holds them all: no array of positions is needed.
        end = bisect_left(range(len(pool)), gone, key=lambda e: int(np.count_nonzero(pool[:e])))
        pool[:end] = False
        count -= gone
    return list(pools)


def _within(mask: Bools, pool: Bools | None) -> Bools:
    return mask if pool is None else np.logical_and(mask, pool, out=mask)


def _union(left: Sequence[Bools], right: Sequence[Bools]) -> list[Bools]:
    return [np.logical_or(a, b, out=a) for a, b in zip(left, right, strict=True)]


_T = TypeVar("_T")


class Made(Sequence[_T]):
    """As many elements as there are keys, each made of its key."""

    def __init__(self, keys: Iterable[Any], make: Callable[[Any], _T]) -> None:
        self.keys, self.make = tuple(keys), make

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: Any) -> Any:
        return self.make(self.keys[at])
