"""Cohorts in turn, and what a budget counts on before anybody was drawn."""

from collections import Counter

import pytest

from fedprune import RunConfig
from fedprune.config.cohort import drawn
from fedprune.config.planned import noise_of_budget, planned
from fedprune.config.terms import accounting_terms_of
from fedprune.privacy.tally import AMPLIFICATION, Tally, with_releases

MLP = {"task": "digits", "model": "mlp"}


def turns(n, cohort, rounds, *, there=None, seed=0):
    c = RunConfig(clients=n, cohort=cohort, sampling="round-robin", seed=seed)
    return [drawn(c, range(n) if there is None else there, r) for r in range(1, rounds + 1)]


@pytest.mark.parametrize(("n", "cohort"), [(20, 6), (7, 3), (5, 5), (9, 1)])
def test_everyone_has_a_turn_in_every_cycle_and_nobody_two_at_once(n, cohort):
    cohorts = turns(n, cohort, 2 * n)
    assert all(who == sorted(set(who)) and len(who) == cohort for who in cohorts)
    for cycle in range(2):  # n rounds are as many cycles as a cohort has clients
        few = Counter(p for who in cohorts[cycle * n : (cycle + 1) * n] for p in who)
        assert few == dict.fromkeys(range(n), cohort)
    for rounds in range(1, 2 * n):
        most = Counter(p for who in cohorts[:rounds] for p in who)
        assert max(most.values()) == -(-rounds * cohort // n)
    assert cohorts == turns(n, cohort, 2 * n)
    if cohort < n:
        assert cohorts != turns(n, cohort, 2 * n, seed=1)


def test_who_is_absent_misses_its_turn_and_moves_nobody_elses():
    there = [p for p in range(20) if p not in (3, 4, 11)]
    whole, some = turns(20, 6, 24), turns(20, 6, 24, there=there)
    assert some == [[p for p in who if p in there] for who in whole]


def noise(**keys):
    base = {**MLP, "clients": 20, "cohort": 6, "rounds": 6, "dp": "client", "epsilon": 6.0}
    config = RunConfig(**base, dp_noise=1.0, metrics="exact", allow_uncovered=True, **keys)
    return noise_of_budget(config)


@pytest.mark.slow
def test_a_budget_is_planned_with_what_each_client_takes_part_in():
    in_turn = noise(sampling="round-robin")
    assert noise(sampling="round-robin", secure="secagg") == pytest.approx(in_turn, rel=0.01)
    assert noise(sampling="round-robin", noise_source="secret") == in_turn
    assert in_turn < noise()
    assert in_turn < noise(secure="secagg")


def test_of_a_draw_that_nobody_knows_only_the_secret_is_planned_with():
    keys = {**MLP, "clients": 20, "cohort": 6, "rounds": 5, "dp": "client", "dp_noise": 2.0}
    c = RunConfig(**keys, metrics="exact", allow_uncovered=True, noise_source="secret")
    tally, questions = Tally(), list(planned(c))
    for occasion, releases in questions:
        tally = with_releases(tally, accounting_terms_of(c), occasion, releases)
    accounts = tally.accounts()
    (all_rounds,) = accounts["participation"]  # somebody is in all of them, as may happen
    assert [event.z for event in all_rounds] == [pytest.approx(len(questions) ** -0.5)]
    assert AMPLIFICATION in accounts
