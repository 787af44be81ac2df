from itertools import pairwise
from math import exp

import pytest
from scipy.stats import binom

from fedprune.attacks.one_run import cap, epsilon_bound, p_value

DELTA = 1e-5

CAPS = {10: 1.05, 20: 1.82, 50: 2.78, 100: 3.49, 200: 4.19, 500: 5.10, 1000: 5.78}
"""What jax_privacy certifies when all guesses are right (Steinke et al. 2023, theorem 5.2)."""


@pytest.mark.parametrize("guesses", CAPS)
def test_the_most_that_can_be_certified(guesses):
    assert cap(guesses, guesses, DELTA) == pytest.approx(CAPS[guesses], abs=0.006)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right"), [(30, 20, 0), (30, 20, 1), (30, 20, 17), (40, 40, 40)]
)
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_the_probability_is_the_sum_written_out(canaries, guesses, right, epsilon):
    success = 1 / (1 + exp(-epsilon))
    alone = [binom.pmf(k, guesses, success) for k in range(guesses + 1)]
    worst = max((sum(alone[right - i : right]) / i for i in range(1, right + 1)), default=0.0)
    wanted = min(1.0, sum(alone[right:]) + 2 * canaries * DELTA * worst)
    assert p_value(canaries, guesses, right, epsilon, DELTA) == pytest.approx(wanted, rel=1e-9)


def test_the_bound_is_where_the_probability_is_five_percent():
    bound = epsilon_bound(100, 50, 47, DELTA)
    assert p_value(100, 50, 47, bound, DELTA) == pytest.approx(0.05, abs=1e-6)


def test_more_right_guesses_never_lower_the_bound():
    bounds = [epsilon_bound(100, 50, right, DELTA) for right in range(51)]
    assert all(left <= right for left, right in pairwise(bounds))
    assert bounds[25] == 0.0 < bounds[50]


def test_a_delta_that_explains_everything_leaves_no_bound():
    assert epsilon_bound(100, 100, 100, 0.5) == 0.0


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="allowed: 0 <= right <= guesses <= canaries"):
        p_value(*counts, 1.0, DELTA)
