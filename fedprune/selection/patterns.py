"""N of every M weights stay: what that removes of a row."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


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
