"""The n-th lowest of many values: by introselect, or of very many without a copy of them.

Of few values a copy is partitioned (introselect, Musser 1997, `numpy.ndarray.partition`). Of very
many the copy would be twice a model's weights: there their bits are counted, the highest sixteen
first, as in a radix sort, until so few are left in question that these are partitioned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERY_MANY = 2**22  # Values from which on no copy of them is made
_CHUNK = 2**18  # Values whose bits are looked at together
_FEW = 16  # As many parts are the values in question at most one of, before they are copied

_DIGIT, _BITS = 16, 64


def cut_at(
    keys: Sequence[NDArray[Any]], pools: Sequence[NDArray[np.bool_] | None], count: int
) -> tuple[Any, int]:
    """The `count`-th lowest key of the pools, and how many equal ones the `count` lowest have.

    `keys`: the values compared, (size,) each, no NaN; gone through several times. `pools`: who
    takes part; None is everybody. `count`: at least 1, at most as many as take part.
    """
    size, types = 0, set()
    for key, pool in zip(keys, pools, strict=True):
        size += key.size if pool is None else int(np.count_nonzero(pool))
        types.add(key.dtype)
    if size >= VERY_MANY and types in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
        return _cut_by_bits(keys, pools, count, size)
    return _cut_of([k if p is None else k[p] for k, p in zip(keys, pools, strict=True)], count)


def _cut_of(parts: Sequence[NDArray[Any]], count: int) -> tuple[Any, int]:
    # `partition` works in place, so this copy is the only array as large as the keys.
    low = np.concatenate(parts)
    low.partition(count - 1)
    cut = low[count - 1]
    return cut, int(np.count_nonzero(low[:count] == cut))


def _cut_by_bits(
    keys: Sequence[NDArray[Any]], pools: Sequence[NDArray[np.bool_] | None], count: int, size: int
) -> tuple[Any, int]:
    prefix, left = 0, count
    for shift in range(_BITS - _DIGIT, -1, -_DIGIT):
        found = np.zeros(2**_DIGIT, np.int64)
        for _, bits in _in_question(keys, pools, prefix, shift + _DIGIT):
            digits = (bits >> np.uint64(shift)) & np.uint64(2**_DIGIT - 1)
            found += np.bincount(digits.astype(np.int64), minlength=2**_DIGIT)
        until = np.cumsum(found)
        digit = int(np.searchsorted(until, left))
        left -= int(until[digit] - found[digit])
        prefix = prefix << _DIGIT | digit
        if found[digit] <= size // _FEW or not shift:
            break
    parts = [values for values, _ in _in_question(keys, pools, prefix, shift)]
    return _cut_of(parts, left)


def _in_question(
    keys: Sequence[NDArray[Any]], pools: Sequence[NDArray[np.bool_] | None], prefix: int, shift: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint64]]]:
    """Values whose bits above `shift` are these, a chunk at a time, and their bits."""
    for key, pool in zip(keys, pools, strict=True):
        for start in range(0, key.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            values = key[part] if pool is None else key[part][pool[part]]
            bits = _ordered(values)
            if shift < _BITS:
                those = bits >> np.uint64(shift) == np.uint64(prefix)
                values, bits = values[those], bits[those]
            yield values, bits


def _ordered(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Numbers without a sign that are ordered as the values are: of float64, bit by bit.

    IEEE 754: above 0 the bits are, below 0 they are once they are all turned. 0 has two names.
    """
    bits = (values.astype(np.float64) + 0.0).view(np.uint64)
    top = np.uint64(1 << (_BITS - 1))
    return np.where(bits & top, ~bits, bits | top)
