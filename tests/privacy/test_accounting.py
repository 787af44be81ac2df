"""Epsilon against numbers from elsewhere, and the laws of composition."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune import RunConfig
from fedprune.config.cohort import drawn
from fedprune.privacy.accounting import skellam_zcdp, smallest_epsilon
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.tally import Tally, with_releases
from fedprune.privacy.totals import total_privacy
from tests.privacy.booking import cost, noisy, question, tallied

GOLDEN = [
    # unit, population, cohort, noise multiplier, rounds or steps, RDP, PLD (None: not supported)
    ("example", 0.01, 1.0, 1000, 2.1014, 1.8282),
    ("example", 256 / 60000, 1.1, 14062, 2.5966, 2.3817),
    ("client", 1.0, 1.0, 1, 4.7285, 4.3772),
    ("client", 1.0, 4.0, 21, 5.5319, 5.1274),
    ("client", 1.0, 4.0, 25, 6.1228, 5.6796),
    ("client", 0.1, 1.0, 20, 6.0847, None),
]


def told(terms, questions):
    rdp = cost(terms, questions)
    return rdp, total_privacy(tallied(terms, questions), terms, rdp)


def clients(rate, z, rounds):
    terms = AccountingTerms(dp="client", cohort=round(rate * 100), population=100)
    return terms, [(question(r, range(terms.cohort), 100), [noisy(z)]) for r in range(rounds)]


def examples(rate, z, steps):
    step = noisy(z, unit="example", mechanism="sampled-gaussian", rate=rate, steps=steps)
    return AccountingTerms(dp="example"), [(question(1, range(3), 3), [step])]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("unit", "rate", "z", "times", "rdp", "pld"), GOLDEN)
def test_the_golden_table_of_the_research_notes(unit, rate, z, times, rdp, pld):
    epsilon, closing = told(*(clients if unit == "client" else examples)(rate, z, times))
    assert epsilon == pytest.approx(rdp, abs=0.01)
    if pld is None:
        assert closing["pld"] is None
        assert "without replacement" in closing["pld_why_not"]
    else:
        assert closing["pld"] == pytest.approx(pld, abs=0.01)
        assert closing["pld"] <= closing["rdp"]


def test_64_randomised_bits_are_composed_one_by_one():
    votes = noisy(None, "randomised-response", pure=0.1, coordinates=64)
    rdp, closing = told(AccountingTerms(), [(question(1, range(5), 5), [votes])])
    assert closing["pld"] == pytest.approx(3.314, abs=0.01)
    assert rdp == pytest.approx(3.537, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_all_releases_of_a_cohort_in_a_round_are_one_event(sampling):
    terms = AccountingTerms(dp="client", sampling=sampling, cohort=5, population=50)
    asked = range(5)
    together = [
        (question(1, asked, 50), [noisy(2.0), noisy(3.0, quantity="scores")]),
        (question(1, asked, 50, arm="random", order=1), [noisy(6.0)]),
    ]
    z = (2.0**-2 + 3.0**-2 + 6.0**-2) ** -0.5
    joined = cost(terms, together)
    assert joined == pytest.approx(cost(terms, [(question(1, asked, 50), [noisy(z)])]))
    apart = [(question(r, asked, 50), [noisy(z)]) for r, z in enumerate((2.0, 3.0, 6.0))]
    assert joined > cost(terms, apart)


def booked(sampling, secure="none", rounds=24):
    """What 20 clients go through, 6 a round, z = 2: the accounts, and the most anybody was in."""
    terms = AccountingTerms(dp="client", sampling=sampling, cohort=6, population=20, secure=secure)
    keys = {"clients": 20, "cohort": 6, "dp": "client", "dp_noise": 2.0, "secure": secure}
    keys["noise_source"] = "seeded"  # else cohorts are the operating system's
    config = RunConfig(sampling=sampling, **keys)
    cohorts = [drawn(config, range(20), r) for r in range(1, rounds + 1)]
    asked = Counter(p for cohort in cohorts for p in cohort)
    questions = [(question(r, who, 20), [noisy(2.0)]) for r, who in enumerate(cohorts)]
    return *told(terms, questions), max(asked.values())


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("sampling", "secure", "most", "account", "rdp", "pld"),
    [
        ("fixed", "none", 12, "amplification", 7.9303, None),
        ("fixed", "secagg", 12, "participation", 9.0100, 8.3854),
        ("poisson", "none", 13, "amplification", 4.0889, 3.6953),
        ("round-robin", "none", 8, "participation", 7.0774, 6.5730),
        ("round-robin", "secagg", 8, "participation", 7.0774, 6.5730),
    ],
)
def test_epsilon_is_that_of_what_a_client_took_part_in(sampling, secure, most, account, rdp, pld):
    """24 rounds of the whole cost 13.78; dp-accounting says what as many rounds as `most` cost."""
    import dp_accounting as dp

    spent, closing, asked = booked(sampling, secure)
    assert asked == most
    assert spent == closing["rdp"] == pytest.approx(rdp, abs=1e-3)
    assert closing["account"] == account
    assert (closing["pld"] or 0.0) == pytest.approx(pld or 0.0, abs=1e-3)
    oracle = dp.rdp.RdpAccountant()
    oracle.compose(dp.GaussianDpEvent(2.0), most)
    if account == "participation":
        assert spent == pytest.approx(oracle.get_epsilon(1e-5), rel=1e-9)
    assert spent <= oracle.get_epsilon(1e-5) * (1 + 1e-12)


def test_what_each_client_took_part_in_is_composed_with_what_it_shares_with_nobody():
    """Against one that follows each client by itself, composed by dp-accounting."""
    import dp_accounting as dp

    terms = AccountingTerms(dp="client", cohort=2, population=4, secure="secagg")
    skellam = noisy(None, "skellam", spread=(0.02, 0.001))
    asked = [((0, 1), 2.0), ((1, 2), 3.0), ((0, 3), 1.5), ((2, 3), None), ((0, 2), None)]
    questions = [
        (question(r, who, 4), [noisy(z) if z else skellam]) for r, (who, z) in enumerate(asked)
    ]
    worst = 0.0
    for client in range(4):
        one = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
        whole = [float(a) for a in one.orders if a == round(a)]
        skellams = sum(client in who for who, z in asked if z is None)
        one = dp.rdp.RdpAccountant(whole if skellams else list(one.orders))
        for z in (z for who, z in asked if z and client in who):
            one.compose(dp.GaussianDpEvent(z))
        orders = one.orders
        curve = [x + skellams * (0.02 * a + 0.001) for a, x in zip(orders, one.rdp, strict=True)]
        worst = max(worst, dp.rdp.compute_epsilon(orders, curve, terms.delta)[0])
    assert cost(terms, questions) == pytest.approx(worst, rel=1e-9)


def test_only_a_cohort_that_is_not_seen_protects_by_chance():
    z, terms = 2.0, AccountingTerms(dp="client", cohort=5, population=50)
    chance = [(question(1, range(5), 50), [noisy(z)])]
    everyone = [(question(1, range(50), 50, audience="everyone"), [noisy(z)])]
    assert cost(terms, chance) < cost(terms, everyone)
    seen = AccountingTerms(dp="client", cohort=5, population=50, secure="secagg")
    assert cost(seen, chance) == cost(terms, everyone)
    in_turn = AccountingTerms(dp="client", sampling="round-robin", cohort=5, population=50)
    assert cost(in_turn, chance) == cost(in_turn, everyone) == cost(terms, everyone)
    panel = [(question(1, range(5), 50, audience="panel"), [noisy(z)])]
    assert cost(terms, panel) == 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
@pytest.mark.parametrize("z", [1e-3, 0.3, 1.0, 30.0, 1e3, 1e5, 1e8])
def test_being_drawn_by_chance_never_costs_more_than_being_there(sampling, z):
    """The bound for samples without replacement, taken alone, does at 10 of 20."""
    terms = AccountingTerms(dp="client", sampling=sampling, cohort=10, population=20)
    chance = [(question(r, range(10), 20), [noisy(z)]) for r in range(20)]
    there = [(question(r, range(20), 20, audience="everyone"), [noisy(z)]) for r in range(20)]
    assert 0 <= cost(terms, chance) <= cost(terms, there) * (1 + 1e-12)


def test_examples_meet_only_what_their_own_client_releases():
    """Parallel composition: four rounds of disjoint cohorts cost as much as one round."""
    terms, step = AccountingTerms(dp="example"), noisy(1.0, unit="example", steps=3)
    apart = [(question(r, [2 * r, 2 * r + 1], 8), [step]) for r in range(4)]
    assert cost(terms, apart) == cost(terms, apart[:1])
    again = [*apart, (question(5, [3], 8), [step])]
    twice = [(question(r, [0], 8), [step]) for r in range(2)]
    assert cost(terms, again) == cost(terms, twice)


def test_what_hides_examples_does_not_hide_a_client():
    step = noisy(1.0, unit="example", mechanism="sampled-gaussian", rate=0.1, steps=3)
    rdp, closing = told(AccountingTerms(dp="client"), [(question(1, range(5), 5), [step])])
    assert math.isinf(rdp)
    assert closing["epsilon"] == closing["mu"] == "infinity"


def test_who_answers_a_vote_cannot_be_hidden_by_the_vote():
    votes = noisy(None, "randomised-response", pure=1.0)
    poisson = AccountingTerms(dp="client", sampling="poisson", cohort=2, population=9)
    assert math.isinf(cost(poisson, [(question(1, range(5), 9), [votes])]))


def test_no_noise_is_no_privacy():
    for unit in ("client", "example"):
        asked = [(question(1, range(5), 9), [noisy(0.0, unit=unit)])]
        rdp, closing = told(AccountingTerms(dp=unit), asked)
        assert math.isinf(rdp)
        assert closing["curve"][0][1] == "infinity"


def test_skellam_noise_of_much_variance_costs_what_gaussian_noise_does():
    """Agarwal, Kairouz, Liu 2021: what is above the Gaussian's falls with the variance."""

    def epsilon(scale):
        spread = skellam_zcdp((4.0 * scale) ** 2, l1=100 * scale, l2=scale)
        release = noisy(None, "skellam", spread=spread)
        terms = AccountingTerms(dp="client", cohort=9, population=9)
        return cost(terms, [(question(r, range(9), 9), [release]) for r in range(10)])

    gaussian = cost(*clients(1.0, 4.0, 10))
    assert epsilon(10.0) > epsilon(100.0) > epsilon(10000.0) >= gaussian
    assert epsilon(10000.0) == pytest.approx(gaussian, rel=0.01)


@pytest.mark.parametrize("l1", [3.0, 50.0, 4000.0])
@pytest.mark.parametrize("mu", [5.0, 100.0, 1e6])
def test_the_bound_of_skellam_noise_holds_at_every_order_of_the_theorem(l1, mu):
    l2 = 3.0
    rho, xi = skellam_zcdp(mu, l1, l2)
    for order in range(2, 200):
        more = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
        assert rho * order + xi >= order * l2**2 / (2 * mu) + more - 1e-12


RELEASES = st.lists(
    st.tuples(st.integers(1, 4), st.floats(0.3, 50), st.sampled_from(["cohort", "everyone"])),
    min_size=1,
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(RELEASES, st.sampled_from(["fixed", "poisson"]), st.sampled_from(["client", "example"]))
def test_epsilon_is_a_number_that_no_further_release_makes_smaller(what, sampling, unit):
    terms = AccountingTerms(dp=unit, sampling=sampling, cohort=6, population=10)
    before, tally = 0.0, Tally()
    for round_, z, audience in what:
        asked = range(6) if audience == "cohort" else range(10)
        occasion = question(round_, asked, 10, audience=audience)
        tally = with_releases(tally, terms, occasion, [noisy(round(z, 1), unit=unit)])
        now = smallest_epsilon(tally.accounts(), terms.relation, terms.delta)
        assert math.isfinite(now)
        assert now >= before - 1e-9
        before = now


@pytest.mark.slow
def test_steps_on_examples_and_a_randomised_vote_add_up():
    """A client's vote hides any examples of it: both cost the client's examples."""
    steps = noisy(1.0, unit="example", mechanism="sampled-gaussian", rate=0.1, steps=10)
    vote = noisy(None, "randomised-response", pure=0.2)
    terms = AccountingTerms(dp="example")
    both, closing = told(terms, [(question(1, range(3), 3), [steps, vote])])
    alone, least = told(terms, [(question(1, range(3), 3), [steps])])
    assert alone < both <= alone + 0.2 + 1e-9
    assert least["pld"] < closing["pld"] <= closing["rdp"]
