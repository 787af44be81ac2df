import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedprune.selection.regrowth import exchange_weights

VALUES = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
Named = dict[str, Tensor]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Named, Named, Named, Named]:
    sizes = draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))

    def tensors(values: st.SearchStrategy, dtype: torch.dtype) -> Named:
        drawn = [draw(st.lists(values, min_size=n, max_size=n)) for n in sizes]
        return {str(i): torch.tensor(row, dtype=dtype) for i, row in enumerate(drawn)}

    masks = tensors(st.booleans(), torch.bool)
    return masks, *(tensors(VALUES, torch.float32) for _ in range(3))


def slow(case: tuple[Named, ...], names: list[str], fraction: float, floor: int) -> set[tuple]:
    """What is kept of these tensors, as (name, place), by plain sorting."""
    masks, lows, highs, sizes = case
    places = [(n, i) for n in names for i in range(len(masks[n]))]
    rank = {p: k for k, p in enumerate(places)}

    def order(scores: Named) -> list[tuple[str, int]]:
        return sorted(places, key=lambda p: (scores[p[0]][p[1]], abs(sizes[p[0]][p[1]]), rank[p]))

    old = {p for p in places if masks[p[0]][p[1]]}
    loose = []
    for n in names:
        own = [p for p in order(lows) if p in old and p[0] == n]
        loose += own[: max(0, len(own) - floor)]
    free = [p for p in order(highs) if p not in old]
    count = min(math.floor(fraction * len(old) + 0.5), len(loose), len(free))
    dropped = [p for p in order(lows) if p in loose][:count]
    return (old - set(dropped)) | set(free[len(free) - count :])


@pytest.mark.parametrize("scope", ["global", "layer"])
@given(cases(), st.floats(0, 1), st.integers(0, 2))
def test_equals_plain_sorting(scope, case, fraction, floor):
    masks, lows, highs, sizes = case
    new = exchange_weights(masks, lows, highs, fraction, scope=scope, magnitude=sizes, floor=floor)
    groups = [list(masks)] if scope == "global" else [[n] for n in masks]
    expected = set().union(*(slow(case, names, fraction, floor) for names in groups))
    assert {(n, i) for n, m in new.items() for i in range(len(m)) if m[i]} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.5}, r"^fraction must be in \[0, 1\], got 1.5$"),
        ({"scope": "row"}, "^scope='row': regrowth needs .*; allowed: global, layer, er, erk$"),
        ({"drop_scores": {"w": torch.tensor([math.nan])}}, "^scores of 'w': NaN in 1 places$"),
    ],
)
def test_errors(options, message):
    one = {"w": torch.ones(1)}
    given = {"drop_scores": one, "grow_scores": one, "fraction": 0.5, **options}
    with pytest.raises(ValueError, match=message):
        exchange_weights({"w": torch.ones(1) > 0}, **given)
