import math

import numpy as np
import pytest
import torch
from by_hand import gone, random_scores, removed_count
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.selection.patterns import pattern_counts, pattern_sparsity
from fedprune.selection.row_ranking import RowRankings, left_of
from fedprune.selection.select import select
from fedprune.selection.units import unit_labels
from fedprune.structure.layout import Layout, as_rows


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@settings(max_examples=40)
@given(st.floats(0, 0.95), st.integers(0, 9))
def test_every_row_loses_the_same(kind, sparsity, seed):
    scores = random_scores({"w": (6, 8)}, seed)
    layout = Layout({"w": scores["w"].shape}, ("w",), (), {}, {"w": kind})
    mask = select(scores, sparsity, scope="row", layout=layout, floor=0)["w"]
    lost = [gone(row) for row in as_rows(layout, "w", mask)]
    assert max(lost) - min(lost) <= 1
    assert sum(lost) == math.floor(sparsity * 48 + 0.5)


def test_rows_that_lost_more_before_keep_the_rest():
    alive = {"w": torch.ones(4, 5, dtype=torch.bool)}
    alive["w"][2, :4] = False
    mask = select({"w": torch.arange(20.0).reshape(4, 5)}, 0.5, scope="row", alive=alive)["w"]
    assert [gone(row) for row in mask] == [2, 2, 4, 2]


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_rows_lose_what_sorting_by_score_magnitude_and_position_says(seed):
    rng = np.random.default_rng(seed)
    size = rows, columns = rng.integers(1, 6), rng.integers(1, 9)
    scores = rng.choice([-np.inf, 0.0, 1.0, 2.0, np.inf, *rng.normal(size=3)], size)
    magnitude, alive = rng.integers(-2, 3, size).astype(float), rng.random(size) < 0.7
    gone = columns - alive.sum(1)
    counts = gone + rng.integers(0, columns - gone + 1)
    for m, a in ((magnitude, alive), (None, alive), (magnitude, None), (None, None)):
        kept = left_of(RowRankings(scores, m, a), counts)
        for i in range(rows):
            lives = [True] * columns if a is None else a[i]
            sizes = [0] * columns if m is None else abs(m[i])
            keys = zip(lives, scores[i], sizes, range(columns), strict=True)
            lost = [j for *_, j in sorted(keys)][: counts[i]]
            assert kept[i].tolist() == [j not in lost for j in range(columns)]


PATTERNS = [(2, 4), (1, 4), (4, 8), (1, 3), (3, 5)]


@pytest.mark.parametrize("shape", PATTERNS)
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("linear", (5, 11)),
        ("conv1d", (5, 11)),
        ("conv", (3, 11, 2, 2)),
        ("conv", (3, 8, 3)),
        ("conv", (2, 6, 1, 2, 2)),
        ("conv", (4, 1, 3, 3)),
    ],
)
def test_n_m_holds_in_every_group_and_keeps_the_best(shape, kind, size):
    """Along the inputs: of a convolution its channels, one row for each output and place."""
    n, m = shape
    scores = random_scores({"w": size})
    layout = Layout({"w": scores["w"].shape}, ("w",), (), {}, {"w": kind})
    options = {"unit": "n:m", "unit_shape": shape, "layout": layout}
    mask = select(scores, pattern_sparsity(n, m), **options)["w"]
    assert gone(mask) == removed_count(layout, pattern_sparsity(n, m), unit="n:m", unit_shape=shape)
    along = 0 if kind == "conv1d" else 1
    turned = (t.movedim(along, -1).reshape(-1, size[along]) for t in (mask, scores["w"]))
    rows, values = turned
    labels = unit_labels(layout, "n:m", shape)["w"]
    assert labels.unique().numel() == len(rows) * -(-size[along] // m)
    for row, score in zip(rows, values, strict=True):
        for part, value in zip(row.split(m), score.split(m), strict=True):
            assert int(part.sum()) == -(-len(part) * n // m)
            order = sorted(range(len(part)), key=lambda i: (value[i], i))
            assert part.tolist() == [i in order[-int(part.sum()) :] for i in range(len(part))]


def test_n_m_comes_in_steps_that_only_shrink():
    masks = {"w": torch.ones(4, 10, dtype=torch.bool)}
    for step in range(1, 6):
        sparsity = step / 5 * 0.5
        before, scores = masks, random_scores({"w": (4, 10)}, step)
        how = {"unit": "n:m", "unit_shape": (2, 4), "magnitude": scores}
        masks = select(scores, sparsity, alive=before, **how)
        assert not (masks["w"] & ~before["w"]).any()
        assert gone(masks["w"]) == 4 * int(pattern_counts(10, 2, 4, sparsity).sum())
    with pytest.raises(ValueError, match="a group has lost more than its pattern removes"):
        select(W4, 0.25, unit="n:m", unit_shape=(3, 4), alive={"w": torch.zeros(1, 4) > 0})
    with pytest.raises(ValueError, match="cannot keep 1:4 of 'w': 1 of 4 weights stay, its floor"):
        select(W4, 0.75, unit="n:m", unit_shape=(1, 4), floor=2)


W4 = {"w": torch.arange(4.0).reshape(1, 4)}
