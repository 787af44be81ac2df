"""The n-th lowest of very many values, found without a copy of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from fedprune.selection import cut

VALUES = st.floats(allow_nan=False, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(data=st.data())
def test_bits_find_what_sorting_finds(kind, data):
    keys = data.draw(st.lists(nps.arrays(kind, st.integers(0, 40), elements=VALUES), max_size=3))
    pools = [
        data.draw(st.none() | nps.arrays(np.bool_, key.size, elements=st.booleans()))
        for key in keys
    ]
    those = [k if p is None else k[p] for k, p in zip(keys, pools, strict=True)]
    size = sum(map(len, those))
    if not size:
        return
    count = data.draw(st.integers(1, size))
    low = np.sort(np.concatenate(those))[:count]
    found, equal = cut._cut_by_bits(keys, pools, count, size)
    assert found == low[-1]
    assert equal == np.count_nonzero(low == low[-1])


def test_many_values_of_two_chunks(monkeypatch):
    monkeypatch.setattr(cut, "VERY_MANY", 1)
    keys = [np.random.default_rng(3).standard_normal(2**18 + 5), np.zeros(7)]
    low = np.sort(np.concatenate(keys))
    for count in (1, 1000, 2**17, 2**18 + 12):
        assert cut.cut_at(keys, [None, None], count) == (low[count - 1], 1 if low[count - 1] else 7)
