import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.selection.schedules import (
    SCHEDULES,
    Steps,
    exchange_fraction,
    prunes_at,
    sparsity_at,
    steps_within,
)

NAMES = st.sampled_from(list(SCHEDULES))
SPANS = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 7)).map(
    lambda t: Steps(t[0], t[0] + t[1], t[2])
)


def test_cubic_has_the_values_of_the_paper():
    cubic = SCHEDULES["cubic"].fraction
    values = [0.8 * cubic(i, 10, 0.8) for i in (2, 4, 6, 8, 10)]
    assert values == pytest.approx([0.39, 0.627, 0.749, 0.794, 0.8], abs=5e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Rounds 0 to 9; steps at 2, 4, 6 and, because it is the end, 7.
        ("one-shot", [0, 0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]),
        ("linear", [0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.8, 0.8, 0.8]),
        ("cubic", [0, 0, 0.4625, 0.4625, 0.7, 0.7, 0.7875, 0.8, 0.8, 0.8]),
        ("regrow", [0, 0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]),
        # 0.2 ** (1 / 4), its square, its cube.
        ("exponential", [0, 0, 0.33126, 0.33126, 0.55279, 0.55279, 0.70093, 0.8, 0.8, 0.8]),
    ],
)
def test_sparsity_by_round(schedule, expected):
    span = Steps(2, 7, 2)
    values = [sparsity_at(schedule, r, span, 0.8) for r in range(10)]
    assert values == pytest.approx(expected, abs=1e-5)
    steps = [r for r in range(10) if prunes_at(schedule, r, span)]
    assert steps == ([2] if schedule == "one-shot" else [2, 4, 6, 7])


@pytest.mark.parametrize(
    ("span", "steps"),
    [((3, 3, 5), [3]), ((3, 5, 5), [3, 5]), ((1, 5, 2), [1, 3, 5]), ((0, 3, 1), [0, 1, 2, 3])],
)
def test_steps_are_counted_to_the_last(span, steps):
    assert [r for r in range(20) if prunes_at("linear", r, Steps(*span))] == steps
    counts = [Steps(*span).done(r) for r in range(20)]
    assert counts == [(sum(s <= r for s in steps), len(steps)) for r in range(20)]


@given(NAMES, SPANS, st.floats(0, 1))
def test_it_rises_from_zero_to_the_final_sparsity_at_steps_only(schedule, span, final):
    rounds = range(-1, span.end + 3)
    values = [sparsity_at(schedule, r, span, final) for r in rounds]
    assert values == sorted(values)
    for round_, value, before in zip(rounds[1:], values[1:], values, strict=False):
        if round_ < span.start:
            assert value == 0.0
        if round_ >= span.end:
            assert value == final
        if not prunes_at(schedule, round_, span):
            assert value == before


@pytest.mark.parametrize(
    ("schedule", "span", "message"),
    [
        ("cosine", (1, 2, 1), "unknown schedule 'cosine': allowed are " + ", ".join(SCHEDULES)),
        ("linear", (3, 2, 1), "end must be at or after start 3, got 2"),
        ("linear", (1, 2, 0), "frequency must be 1 or more, got 0"),
    ],
)
def test_errors_say_what_is_allowed(schedule, span, message):
    for asked, more in ((sparsity_at, [0.5]), (prunes_at, [])):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            asked(schedule, 1, Steps(*span), *more)


def test_what_is_exchanged_falls_along_a_cosine():
    values = [exchange_fraction(0.3, t, 4) for t in range(5)]
    assert values == pytest.approx([0.3, 0.2560660, 0.15, 0.0439340, 0.0])
    for step, steps in ((5, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match=r"^step must be in 0 to"):
            exchange_fraction(0.3, step, steps)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 9))
def test_density_falls_by_one_factor_within_a_round(one, other, n):
    before, after = sorted([one, other])
    values = steps_within(before, after, n)
    assert len(values) == n
    assert values[-1] == after
    assert [before, *values] == sorted([before, *values])
    densities = [1 - s for s in (before, *values)]
    if densities[-1] > 1e-3:
        factors = [b / a for a, b in pairwise(densities)]
        assert factors == pytest.approx([factors[0]] * n, rel=1e-6)


@pytest.mark.parametrize(("before", "after", "n"), [(0.5, 0.4, 2), (-0.1, 0.4, 2), (0.1, 0.4, 0)])
def test_steps_that_cannot_be(before, after, n):
    with pytest.raises(ValueError, match=r"must (rise within \[0, 1\]|be 1 or more), got"):
        steps_within(before, after, n)
