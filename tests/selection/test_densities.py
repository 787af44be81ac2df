import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.selection.densities import (
    Ground,
    Limits,
    er,
    erk,
    exactly,
    owl,
    removed_counts,
    uniform,
)

SHAPES = {"conv": (8, 4, 3, 3), "wide": (64, 128), "narrow": (10, 16), "vector": (12,)}


N = sum(map(math.prod, SHAPES.values()))


def ground(sparsity: float, **more: object) -> Ground:
    return Ground({n: torch.Size(s) for n, s in SHAPES.items()}, sparsity, **more)


def density(shares: list[Fraction]) -> list[float]:
    return [1 - float(x) / math.prod(s) for x, s in zip(shares, SHAPES.values(), strict=True)]


def test_erk_by_hand():
    """At 80 %: the vector and the small matrix are full, the others in proportion."""
    conv, wide = (8 + 4 + 3 + 3) / (8 * 4 * 9), (64 + 128) / (64 * 128)
    rest = 0.2 * N - 160 - 12
    epsilon = rest / (conv * 288 + wide * 8192)
    assert conv * epsilon < 1 < epsilon * 26 / 160
    assert density(erk(ground(0.8))) == pytest.approx([conv * epsilon, wide * epsilon, 1, 1])


def test_er_leaves_the_kernel_out():
    shapes = {"a": torch.Size((8, 40, 3, 3)), "b": torch.Size((80, 40, 3, 3))}
    a, b = 48 / 320, 120 / 3200
    epsilon = 0.1 * (2880 + 28800) / (a * 2880 + b * 28800)
    lost = [2880 * (1 - a * epsilon), 28800 * (1 - b * epsilon)]
    assert [float(x) for x in er(Ground(shapes, 0.9))] == pytest.approx(lost)
    matrices = {n: torch.Size(s[:2]) for n, s in shapes.items()}
    assert er(Ground(matrices, 0.5)) == erk(Ground(matrices, 0.5))


@pytest.mark.parametrize("rule", [er, erk])
@given(st.floats(0, 1), st.floats(0, 1))
def test_densities_fall_with_the_sparsity_and_keep_the_total(rule, one, other):
    low, high = sorted([one, other])
    dense, sparse = rule(ground(low)), rule(ground(high))
    assert float(sum(dense)) == pytest.approx(low * N, abs=1e-6)
    assert all(a <= b + Fraction(1, 10**6) for a, b in zip(dense, sparse, strict=True))
    assert all(-1e-9 <= d <= 1 + 1e-9 for d in density(sparse))


def scored(shares: dict[str, int]) -> list[np.ndarray]:
    """So many scores of 100 among scores of 1, by tensor."""
    flats = [np.ones(math.prod(SHAPES[name])) for name in shares]
    for flat, count in zip(flats, shares.values(), strict=True):
        flat[:count] = -100.0  # the sign does not matter
    return flats


def test_owl_moves_densities_with_the_outliers_by_at_most_eight_hundredths():
    counts = {"conv": 6, "wide": 82, "narrow": 0, "vector": 0}
    shares = owl(ground(0.7, scores=scored(counts)))
    ratios = [count / math.prod(SHAPES[name]) for name, count in counts.items()]
    mean = sum(counts.values()) / N
    scale = 0.08 / max(abs(r - mean) for r in ratios)
    assert density(shares) == pytest.approx([0.3 + scale * (r - mean) for r in ratios])
    assert max(abs(d - 0.3) for d in density(shares)) == pytest.approx(0.08)
    assert float(sum(shares)) == pytest.approx(0.7 * N)


@pytest.mark.parametrize("sparsity", [0.0, 0.03, 0.99, 1.0])
def test_owl_stays_within_zero_and_one_and_is_uniform_without_outliers(sparsity):
    some = scored({"conv": 6, "wide": 82, "narrow": 0, "vector": 0})
    assert all(-1e-9 <= d <= 1 + 1e-9 for d in density(owl(ground(sparsity, scores=some))))
    none = scored(dict.fromkeys(SHAPES, 0))
    flat = [float(x) for x in owl(ground(sparsity, scores=none))]
    assert flat == pytest.approx([float(x) for x in uniform(ground(sparsity))])


@given(st.lists(st.tuples(*[st.integers(0, 20)] * 3), min_size=1, max_size=5), st.data())
def test_whole_numbers_keep_limits_and_sum_up(drawn, data):
    limits = [Limits(max(t), min(t), sorted(t)[1]) for t in drawn]
    total = data.draw(st.integers(sum(x.must for x in limits), sum(x.most for x in limits)))
    ways = [Fraction(data.draw(st.integers(0, 5))) for _ in limits]
    counts = removed_counts(limits, total, exactly(ways, total, [x.size for x in limits]), ways)
    assert sum(counts) == total
    assert all(x.must <= c <= x.most for x, c in zip(limits, counts, strict=True))
