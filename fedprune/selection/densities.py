"""How much every tensor loses: rules for the densities of tensors, and whole numbers from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction

import numpy as np
import torch

from fedprune.selection.ranking import Array

OUTLIER = 5.0  # OWL's M: an outlier is so many times the mean of its tensor ...
DEVIATION = 0.08  # ... and its lambda: no tensor's sparsity is further from the whole model's.


@dataclass(frozen=True)
class Limits:
    """What of one tensor has to go and may go: `size` weights, from `must` to `most` gone."""

    size: int
    must: int
    most: int


@dataclass(frozen=True)
class Ground:
    """What the rules look at."""

    shapes: Mapping[str, torch.Size]  # every tensor's name and shape, in the order of the answer
    sparsity: float  # fraction removed of all weights together
    scores: Sequence[Array] = ()  # of what is alive, flat, by tensor; only OWL looks at them
    # shell pattern to density, for `by_pattern`
    densities: Mapping[str, float] = field(default_factory=dict)
    progress: float = 1.0  # how much of the way to those densities is gone, 0 to 1


def uniform(ground: Ground) -> list[Fraction]:
    """The same fraction of every tensor; weights to remove by tensor, as in the others here."""
    return [Fraction(ground.sparsity * shape.numel()) for shape in ground.shapes.values()]


def er(ground: Ground) -> list[Fraction]:
    """Erdős-Rényi: density in proportion to (in + out) / (in * out), at most 1.

    Mocanu et al. 2018, arXiv 1707.04780; in the form of Evci et al. 2020, arXiv 1911.11134,
    section 3. Small tensors stay denser; ones that would need more than all of their weights keep
    all, and the others share what is left.
    """
    return _in_proportion(ground, [_sparse(shape[:2]) for shape in ground.shapes.values()])


def erk(ground: Ground) -> list[Fraction]:
    """Erdős-Rényi-Kernel: density in proportion to (in + out + kh + kw) / (in * out * kh * kw).

    Evci et al. 2020 (RigL), arXiv 1911.11134, section 3: the number of weights of a convolution
    grows with the sum of its dimensions, not with their product. The same as `er` where nothing is
    a convolution.
    """
    return _in_proportion(ground, [_sparse(shape) for shape in ground.shapes.values()])


def _sparse(shape: Sequence[int]) -> float:
    """Sum over product of the dimensions; a vector is a matrix with one column."""
    sides = [*shape, 1, 1][: max(2, len(shape))]
    return sum(sides) / max(1, math.prod(sides))


def _in_proportion(ground: Ground, raw: Sequence[float]) -> list[Fraction]:
    """Removals under densities epsilon * raw, at most 1, that keep 1 - sparsity of all weights."""
    sizes = [shape.numel() for shape in ground.shapes.values()]
    free = [i for i, size in enumerate(sizes) if size]
    rest = (1.0 - ground.sparsity) * sum(sizes)
    epsilon = 0.0
    while free:
        epsilon = max(rest, 0.0) / sum(raw[i] * sizes[i] for i in free)
        full = [i for i in free if epsilon * raw[i] >= 1.0]
        if not full:
            break
        rest -= sum(sizes[i] for i in full)
        free = [i for i in free if i not in full]
    lost = {i: sizes[i] * (1.0 - epsilon * raw[i]) for i in free}
    return [Fraction(lost.get(i, 0.0)) for i in range(len(sizes))]


def owl(ground: Ground) -> list[Fraction]:
    """By outliers: tensors with more weights that score above 5 times their mean stay denser.

    Yin et al. 2023 (OWL), arXiv 2310.05175, section 3.2: sparsity falls linearly with the share of
    outliers, stays within 0.08 of the target and has the target as its mean. Their code scales the
    *range* to 2 * 0.08, so that single layers may be further away; here the largest deviation is
    0.08 as the text says. Per tensor, not per block; the mean is over weights, so that the total is
    exact; of signed scores the absolute value.
    """
    shares = [_outliers(np.abs(scores)) for scores in ground.scores]
    sizes = [shape.numel() for shape in ground.shapes.values()]
    mean = sum(d * n for d, n in zip(shares, sizes, strict=True)) / max(1, sum(sizes))
    furthest = max((abs(d - mean) for d in shares), default=0.0)
    room = min(DEVIATION, ground.sparsity, 1.0 - ground.sparsity)
    scale = room / furthest if furthest > 0.0 else 0.0
    return [
        Fraction(n * (ground.sparsity - scale * (d - mean)))
        for d, n in zip(shares, sizes, strict=True)
    ]


def _outliers(sizes: Array) -> float:
    if not len(sizes):
        return 0.0
    bar = OUTLIER * float(sizes.mean(dtype=np.float64))
    return int(np.count_nonzero(sizes > bar)) / len(sizes)


def by_pattern(ground: Ground) -> list[Fraction]:
    """Densities given by shell pattern over names; of several that match, the last one counts.

    On the way (progress p below 1) such a density d is 1 - p (1 - d). A tensor that no pattern
    matches has density 1 - sparsity, so the total is what comes out.

    Raises:
        ValueError: a pattern matches no tensor.
    """
    for pattern in ground.densities:
        if not any(fnmatchcase(name, pattern) for name in ground.shapes):
            first = next(iter(ground.shapes), "")
            raise ValueError(
                f"layers={pattern!r}: matches no prunable tensor; allowed: a shell pattern over "
                f"names such as {first!r}"
            )
    return [Fraction(shape.numel() * _asked(ground, name)) for name, shape in ground.shapes.items()]


def _asked(ground: Ground, name: str) -> float:
    given = [d for pattern, d in ground.densities.items() if fnmatchcase(name, pattern)]
    return ground.progress * (1.0 - given[-1]) if given else ground.sparsity


def exactly(shares: Sequence[Fraction], total: int, sizes: Sequence[int]) -> list[Fraction]:
    """The shares scaled so that they sum to `total`: what rounding in their making cost."""
    ways = shares if any(shares) else [Fraction(size) for size in sizes]
    now = sum(ways, Fraction(0)) or Fraction(1)
    return [way * total / now for way in ways]


def removed_counts(
    limits: Sequence[Limits], total: int, shares: Sequence[Fraction], weights: Sequence[Fraction]
) -> list[int]:
    """How many weights of each tensor are gone in the end, `total` in all.

    The shares are rounded by largest remainder, earlier tensors first. Tensors whose share lies
    outside [must, most] are fixed at that limit, those on the side that weighs more first, and the
    rest is shared out again among the others.

    `total`: between the sums of `must` and of `most`. `shares`: what each should lose; they sum to
    `total`, but for rounding. `weights`: proportions in which the others share what a fixed one
    cannot take.
    """
    fixed: dict[int, int] = {}
    while True:
        free = [i for i in range(len(limits)) if i not in fixed]
        rest = total - sum(fixed.values())
        wanted = dict(zip(free, _apportion([shares[i] for i in free], rest), strict=True))
        bounded = {i: min(max(wanted[i], limits[i].must), limits[i].most) for i in free}
        excess = sum(bounded.values()) - rest
        if excess == 0:
            return [(fixed | bounded)[i] for i in range(len(limits))]
        fixed |= {i: bounded[i] for i in free if (bounded[i] - wanted[i]) * excess > 0}
        open_ = [i for i in free if i not in fixed]
        rest = total - sum(fixed.values())
        shares = _spread(rest, open_, weights, [x.size for x in limits])


def _spread(
    rest: int, among: Sequence[int], weights: Sequence[Fraction], sizes: Sequence[int]
) -> list[Fraction]:
    """`rest` in proportion to the weights of some, by their sizes if those are all 0."""
    ways = weights if any(weights[i] for i in among) else [Fraction(size) for size in sizes]
    whole_way = sum((ways[i] for i in among), Fraction(0)) or Fraction(1)
    return [ways[i] * rest / whole_way if i in among else Fraction(0) for i in range(len(ways))]


def _apportion(shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers near the shares that sum to `total`: largest remainders first, then earlier."""
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
