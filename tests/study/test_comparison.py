import itertools
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.study.comparison import (
    Paired,
    front_of,
    holm,
    least_p,
    paired_tests,
    ranking_of,
    seed_spread,
)
from fedprune.study.tables import tests_table as table_of_tests


@pytest.mark.parametrize(
    ("metric", "cell"),
    [("accuracy", "\u22126.6\u00a0points (9.9)"), ("perplexity", "\u22120.066 (0.099)")],
)
def test_differences_of_shares_are_in_points(metric, cell):
    one = Paired("a", "b", 6, -0.0664, 0.0992, -0.71, 0.156, 0.31)
    (row,) = table_of_tests([one], metric).rows
    assert row == ["a against b", "6", cell, "\u22120.71", "0.156", "0.310"]


PS = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(PS)
@settings(max_examples=60, deadline=None)
def test_holm_rejects_what_its_steps_reject(ps):
    """Step by step as Holm wrote it: the smallest p against a/m, the next against a/(m-1), ..."""
    corrected = holm(ps)
    for a in (0.01, 0.05, 0.2, 0.5):
        rejected = set()
        for step, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
            if ps[place] * (len(ps) - step) > a:
                break
            rejected.add(place)
        assert rejected == {i for i, p in enumerate(corrected) if p <= a}


@pytest.mark.parametrize(
    "values", [[1.0, 2.5, -0.5, 4.0], [3.0, 1.0, 2.0, 5.0, 7.5], [-1.0, -2.0, -4.0, 0.5, 8.0, 16.0]]
)
def test_p_and_effect_by_every_way_of_signs(values):
    """Wilcoxon's exact distribution: each sign of each rank is as likely as the other."""
    blocks = [{"a": 10 + v, "b": 10.0} for v in values]
    (found,) = paired_tests(blocks, ["a", "b"], higher=True)
    ranks = [sorted(map(abs, values)).index(abs(v)) + 1 for v in values]

    def least(signs):
        plus = sum(r for r, s in zip(ranks, signs, strict=True) if s)
        return min(plus, sum(ranks) - plus)

    every = [least(signs) for signs in itertools.product([0, 1], repeat=len(ranks))]
    seen = least([v > 0 for v in values])
    assert math.isclose(found.p, sum(x <= seen for x in every) / len(every))
    assert found.p >= least_p(len(values))
    plus = sum(r for r, v in zip(ranks, values, strict=True) if v > 0)
    assert math.isclose(found.effect, (2 * plus - sum(ranks)) / sum(ranks))
    assert math.isclose(found.difference, statistics.fmean(values))
    (worse,) = paired_tests(blocks, ["a", "b"], higher=False)
    assert (worse.p, worse.effect) == (found.p, -found.effect)


def test_pairs_without_a_difference_without_a_partner_and_with_a_tie_in_decimals():
    blocks = [{"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 2.0}, {"a": 3.0}]
    (found,) = paired_tests(blocks, ["a", "b"], higher=True)
    assert (found.count, found.p, found.effect) == (2, 1.0, 0.0)
    assert paired_tests([{"a": 1.0}, {"b": 1.0}], ["a", "b"], higher=True) == []
    blocks = [{"a": 0.3, "b": 0.2}, {"a": 0.2, "b": 0.1}, {"a": 0.1, "b": 0.2}]
    (one,) = paired_tests(blocks, "ab", higher=True)
    assert one.effect == pytest.approx(1 / 3)


# Demsar 2006, table 5(a): critical values of the two-tailed Nemenyi test at 0.05.
DEMSAR = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize(("k", "q"), DEMSAR.items())
def test_the_critical_difference_is_that_of_the_printed_table(k, q):
    labels = [f"m{i}" for i in range(k)]
    blocks = [{n: float((i * b) % (k + 1)) for i, n in enumerate(labels)} for b in range(1, 13)]
    found = ranking_of(blocks, labels, higher=True)
    assert math.isclose(found.critical, q * math.sqrt(k * (k + 1) / (6 * 12)), rel_tol=1e-3)
    assert math.isclose(sum(found.ranks.values()), k * (k + 1) / 2)
    assert list(found.ranks.values()) == sorted(found.ranks.values())


def test_ranks_go_by_what_is_better_and_ties_share():
    blocks = [{"a": 1.0, "b": 2.0, "c": 2.0}] * 3
    assert ranking_of(blocks, ["a", "b", "c"], higher=True).ranks == {"b": 1.5, "c": 1.5, "a": 3.0}
    assert ranking_of(blocks, ["a", "b", "c"], higher=False).ranks == {"a": 1.0, "b": 2.5, "c": 2.5}
    assert ranking_of(blocks[:1], ["a", "b"], higher=True) is None
    assert ranking_of(blocks, ["a", "z"], higher=True) is None  # no block has both


def test_what_is_not_told_apart_is_joined_once():
    blocks = [{"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}] * 8
    joined = ranking_of(blocks, list("abcd"), higher=True).together()
    assert joined == [("a", "b"), ("b", "c"), ("c", "d")]  # the critical difference is 1.66


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_the_front_is_what_no_other_point_beats(points):
    front = [points[i] for i in front_of(points, higher=True)]
    want = {
        (c, q)
        for c, q in points
        if not any((d <= c and r >= q and (d, r) != (c, q)) for d, r in points)
    }
    assert len(front) == len(set(front))
    assert set(front) == want
    mirrored = front_of([(c, -q) for c, q in points], higher=False)
    assert [points[i] for i in mirrored] == front


def test_a_spread_leaves_out_what_is_not_known():
    found = seed_spread([1.0, math.nan, 3.0])
    assert (found.count, found.mean, found.deviation) == (2, 2.0, statistics.stdev([1.0, 3.0]))
    assert math.isnan(seed_spread([1.0]).deviation)
    assert seed_spread([math.nan]).count == 0
