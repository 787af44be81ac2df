"""As much noise as the budget asks for, and no more."""

from dataclasses import replace

import pytest

from fedprune.privacy.accounting import skellam_zcdp
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.calibration import calibrated
from tests.privacy.booking import RAW, cost, noisy, question


def plan(release, rounds, audience="cohort"):
    return [(question(r, range(5), 20, audience=audience), [release]) for r in range(rounds)]


def epsilon(terms, planned, **changed):
    return cost(terms, [(when, [replace(what, **changed)]) for when, (what,) in planned])


GAUSSIAN = noisy(1.0)
STEPS = noisy(3.0, "sampled-gaussian", unit="example", rate=0.1, steps=20)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("budget", [0.1, 8.0])
@pytest.mark.parametrize(
    ("terms", "release"),
    [
        ({"dp": "client"}, GAUSSIAN),
        ({"dp": "client", "sampling": "poisson"}, GAUSSIAN),
        ({"dp": "client", "secure": "secagg"}, GAUSSIAN),
        ({"dp": "example"}, STEPS),
    ],
)
def test_the_factor_fills_the_budget_and_does_not_exceed_it(terms, release, budget):
    terms = AccountingTerms(**terms, cohort=5, population=20, budget=budget)
    planned = plan(release, 10)
    factor = calibrated(terms, planned)
    enough, less = (epsilon(terms, planned, z=release.z * f) for f in (factor, factor / 1.002))
    assert enough <= budget < less


@pytest.mark.parametrize(("releases", "z"), [(1, 0.600), (11, 1.991), (21, 2.751)])
def test_noise_for_epsilon_8_lies_above_that_of_the_tighter_accountant(releases, z):
    """The research notes' table, by privacy loss distributions; this is by Rényi divergences."""
    terms = AccountingTerms(dp="client", cohort=20, population=20, budget=8.0)
    assert z < calibrated(terms, plan(GAUSSIAN, releases, "everyone")) < 1.1 * z


def test_skellam_noise_is_made_wider_too():
    spread = skellam_zcdp(100.0, 40.0, 10.0)
    release = noisy(None, "skellam", spread=spread)
    terms = AccountingTerms(dp="client", cohort=5, population=20, budget=2.0)
    planned = plan(release, 3)
    factor = calibrated(terms, planned)
    assert factor > 1
    wider = skellam_zcdp(100.0 * factor**2, 40.0, 10.0)
    assert epsilon(terms, planned, spread=wider) <= 2.0


def test_nothing_noisy_needs_no_noise():
    assert calibrated(AccountingTerms(dp="client", budget=1.0), plan(RAW, 3)) == 0.0
    assert calibrated(AccountingTerms(dp="client", budget=1.0), plan(GAUSSIAN, 3, "panel")) >= 0.0


def test_votes_by_randomised_response_are_not_helped_by_noise():
    votes = noisy(None, "randomised-response", pure=2.0, coordinates=9)
    terms = AccountingTerms(dp="client", cohort=5, population=20, budget=1.0)
    with pytest.raises(ValueError, match="no noise is enough"):
        calibrated(terms, plan(votes, 1))
