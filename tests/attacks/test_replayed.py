import math
from typing import Any

import pytest

from fedprune import federate
from fedprune.attacks.canary import Audited, Draw, Noised
from fedprune.attacks.replayed import replayed
from fedprune.config.terms import accounting_terms_of
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.ledger import Ledger
from fedprune.privacy.ledger_file import LEDGER_NAME, read_ledger
from fedprune.privacy.release import Occasion, Release
from tests.privacy.booking import RAW, noisy, question
from tests.runs import tiny

FREE = Release("model", ("values",), "down", mechanism="post-processing", covered=True, reason="x")


def gaussian(clip: float, sensitivity: float, z: float) -> Release:
    return noisy(z, clip=clip, sensitivity=sensitivity)


def mechanism(terms: AccountingTerms, *booked: tuple[Occasion, tuple[Release, ...]]) -> Any:
    ledger = Ledger(terms)
    for occasion, releases in booked:
        ledger.book(occasion, releases)
    return replayed(ledger.lines, terms)


def cohort(round_: int, order: int = 0, *partitions: int) -> Occasion:
    return question(round_, partitions or (0, 1, 2), 12, order=order)


@pytest.mark.slow
def test_what_one_cohort_is_asked_in_one_round_is_one_draw():
    terms = AccountingTerms("client", "fixed", 3, 12)
    scores, changes = gaussian(1.0, math.sqrt(2.0), 3.0), gaussian(0.5, 1.0, 4.0)
    found = mechanism(
        terms,
        (cohort(1, 0), (scores, FREE)),
        (cohort(1, 1), (changes, FREE)),
        (cohort(2, 0, 4, 5, 6), (scores, FREE)),
        (cohort(2, 1, 4, 5, 6), (changes, FREE)),
        (cohort(3), (changes, RAW)),
    )
    wanted = (Noised(1.0, 3.0, signed=False), Noised(0.5, 4.0))
    assert found == Audited((Draw(wanted, 0.25, 2), Draw(wanted[1:], 0.25)), "fixed")


def test_measuring_asks_everyone_and_poisson_cohorts_have_their_rate():
    terms = AccountingTerms("client", "poisson", 6, 12)
    everyone = question(1, range(12), 12, audience="everyone", order=1)
    some, all_ = gaussian(0.5, 0.5, 4.0), gaussian(10.0, 10.0, 9.0)
    draws = (Draw((Noised(0.5, 4.0),), 0.5), Draw((Noised(10.0, 9.0),)))
    assert mechanism(terms, (cohort(1), (some,)), (everyone, (all_,))) == Audited(draws, "poisson")


def test_the_two_sides_are_as_far_apart_as_was_booked():
    """Votes are booked with a distance that is neither 2 nor sqrt(2) norms."""
    terms = AccountingTerms("client", "fixed", 12, 12)
    found = mechanism(terms, (cohort(1), (gaussian(10.0, 12.0, 2.0),)))
    assert found.draws[0].sums == (Noised(6.0, 2.0),)


def test_a_secure_sum_hides_no_cohort_and_its_noise_is_that_of_a_gaussian():
    terms = AccountingTerms("client", "fixed", 3, 12, secure="secagg")
    skellam = noisy(None, "skellam", clip=1.0, sensitivity=2.0, spread=(0.125, 1e-9))
    wanted = Audited((Draw((Noised(1.0, 2.0),), 1.0),), "fixed")
    assert mechanism(terms, (cohort(1), (skellam,))) == wanted


def test_of_examples_those_of_the_partition_that_was_asked_most():
    terms = AccountingTerms("example", "fixed", 2, 4)
    how = {"unit": "example", "clip": 1.0, "sensitivity": 1.0, "steps": 5, "rate": 0.1}
    steps = (noisy(1.5, "sampled-gaussian", **how),)
    found = mechanism(terms, (cohort(1, 0, 0, 1), steps), (cohort(2, 0, 1, 2), steps))
    assert found == Audited((Draw((Noised(1.0, 1.5),), 0.1, 10),), "poisson")


def test_without_noise_there_is_nothing_to_audit():
    for dp in ("none", "client", "example"):
        assert mechanism(AccountingTerms(dp), (cohort(1), (FREE, RAW))) is None


@pytest.mark.slow
def test_a_real_ledger_is_replayed_with_all_its_sums(tmp_path):
    config = tiny(model="mlp", dp="client", dp_noise=2.0, rounds=3, warmup=1, end=3)
    federate(config, folder=tmp_path)
    lines = read_ledger(tmp_path / LEDGER_NAME)
    draws = replayed(lines, accounting_terms_of(config)).draws
    noised = [x for x in lines if x["mechanism"] == "gaussian"]
    assert sum(len(d.sums) * d.times for d in draws) == len(noised) > 3
    assert {d.rate for d in draws} == {0.6, 1.0}
    assert {n.z for d in draws for n in d.sums} == {2.0}
