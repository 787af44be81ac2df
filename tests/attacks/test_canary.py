from dataclasses import replace
from itertools import pairwise
from math import exp

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from scipy.stats import binom

from fedprune.attacks.canary import Mechanism, Noised, audit, cap, epsilon_bound, p_value
from fedprune.privacy.noise import seeded_source

DELTA = 1e-5

CAPS = {10: 1.05, 20: 1.82, 50: 2.78, 100: 3.49, 200: 4.19, 500: 5.10, 1000: 5.78}
"""What jax_privacy certifies when all guesses are right (Steinke et al. 2023, theorem 5.2)."""


@pytest.mark.parametrize("guesses", CAPS)
def test_the_most_that_can_be_certified(guesses: int):
    assert cap(guesses, guesses, DELTA) == pytest.approx(CAPS[guesses], abs=0.006)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right"), [(30, 20, 0), (30, 20, 1), (30, 20, 17), (40, 40, 40)]
)
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_the_probability_is_the_sum_written_out(
    canaries: int, guesses: int, right: int, epsilon: float
):
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
def test_impossible_counts_are_refused(counts: tuple[int, int, int]):
    with pytest.raises(ValueError, match="allowed: 0 <= right <= guesses <= canaries"):
        p_value(*counts, 1.0, DELTA)


MECHANISMS = {
    "replace one": Mechanism((Noised(1.0, 2.2),)),
    "add or remove one": Mechanism((Noised(1.0, 2.2),), "poisson"),
    "without negative values": Mechanism((Noised(0.3, 2.2, signed=False),)),
    "many sums": Mechanism((Noised(0.3, 7.0, times=10),)),
    "two kinds": Mechanism((Noised(1.0, 3.2), Noised(0.1, 3.2, signed=False))),
    "sampled": Mechanism((Noised(1.0, 2.8, times=20),), "poisson", 0.25),
}


def claim(mechanism: Mechanism) -> float:
    """Epsilon by an exact accountant; cohorts without replacement are not among them."""
    accountant = PLDAccountant()
    for noised in mechanism.sums:
        event = dp_accounting.GaussianDpEvent(noised.z)
        if mechanism.rate < 1.0:
            event = dp_accounting.PoissonSampledDpEvent(mechanism.rate, event)
        accountant.compose(event, noised.times)
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_right_mechanism_passes_and_a_broken_one_does_not(name: str):
    mechanism = MECHANISMS[name]
    claimed = claim(mechanism)
    assert 1.5 < claimed < 2.0

    def caught(**broken: object) -> int:
        changed = replace(mechanism, **broken)
        bounds = [
            audit(changed, DELTA, seeded_source(s, "noise"), canaries=400, size=1600, seed=s).bound
            for s in range(20)
        ]
        return sum(bound > claimed for bound in bounds)

    assert caught() <= 1
    assert caught(noise=0.0) >= 19
    assert caught(clipping=False) >= 19


def test_a_cohort_of_fixed_size_is_audited_as_one():
    mechanism = Mechanism((Noised(1.0, 1.5, times=10),), "fixed", 0.25)
    found = [
        audit(m, DELTA, seeded_source(3, "noise"), canaries=200, size=800, seed=3)
        for m in (mechanism, replace(mechanism, noise=0.0))
    ]
    assert found[0].bound < 1.0 < 3.0 < found[1].bound
    assert found[0].cap == found[1].cap == cap(200, 100, DELTA)


def test_the_same_seed_gives_the_same_audit():
    mechanism = Mechanism((Noised(1.0, 1.0),))
    first, second = (
        audit(mechanism, DELTA, seeded_source(1, "noise"), canaries=50, size=200, seed=1)
        for _ in range(2)
    )
    assert first == second
    assert first.guesses == 25


def test_too_few_coordinates_are_refused():
    with pytest.raises(ValueError, match="50 canaries in 99 coordinates"):
        audit(
            Mechanism((Noised(1.0, 1.0),)),
            DELTA,
            seeded_source(0, "x"),
            canaries=50,
            size=99,
            seed=0,
        )
