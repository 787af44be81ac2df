"""Gaussian DP against closed forms."""

import math
from collections import Counter

import pytest

from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.mechanisms import Event
from fedprune.privacy.totals import gaussian_delta, gaussian_mu, total_privacy


def test_mu_of_unsampled_noise_is_exact():
    assert gaussian_mu([Counter({Event(z=0.5): 1})], 0.0, 1e-5) == (2.0, "exact")
    assert gaussian_mu([Counter()], 0.0, 1e-5) == (0.0, "exact")


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 8.0, 100.0, 900.0])
def test_mu_elsewhere_is_the_gaussian_with_this_epsilon_at_this_delta(epsilon):
    mu, how = gaussian_mu([Counter({Event(z=1.0, rate=0.1): 3})], epsilon, 1e-5)
    assert how == "at this delta"
    assert gaussian_delta(mu, epsilon) == pytest.approx(1e-5, rel=1e-3)
    assert gaussian_delta(mu, epsilon) <= 1e-5


@pytest.mark.parametrize(("z", "times"), [(1.5, 1), (1.5, 4), (0.2, 1)])
def test_gaussians_have_the_curve_that_is_known_in_closed_form_rounded_up(z, times):
    told = total_privacy(
        {"participation": [Counter({Event(z=z): times})]}, AccountingTerms(dp="client"), 3.0
    )
    assert len(told["curve"]) == 13
    for delta, epsilon in told["curve"]:
        found = gaussian_delta(times**0.5 / z, epsilon)
        assert found <= delta
        assert found == pytest.approx(delta, rel=1e-5)
    epsilons = [epsilon for _, epsilon in told["curve"]]
    assert epsilons == sorted(epsilons, reverse=True)


def test_delta_of_a_gaussian_is_never_above_one_or_below_zero():
    for mu in (0.0, 1e-6, 1.0, 50.0):
        for epsilon in (0.0, 1e-3, 5.0, 5000.0):
            assert 0.0 <= gaussian_delta(mu, epsilon) <= 1.0
    assert gaussian_delta(1e3, 0.0) == pytest.approx(1.0)


def test_what_distributions_cannot_cover_says_why():
    for event, why in (
        (Event(z=1.0, sample=(10, 3)), "without replacement"),
        (Event(spread=(0.1, 0.0)), "Skellam"),
        (Event(z=1e-3), "above 1000"),
    ):
        accounts = {"participation": [Counter({event: 1})]}
        told = total_privacy(accounts, AccountingTerms(dp="client"), 5.0 if event.z > 0.1 else 5e5)
        assert told["pld"] is None
        assert why in told["pld_why_not"]
        assert told["curve_by"] == "rdp"
        assert all(math.isfinite(epsilon) for _, epsilon in told["curve"])
