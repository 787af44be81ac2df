import math

import pytest

from fedprune.attacks.canary import Audited, Draw, Noised
from fedprune.attacks.replayed import replayed
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.ledger import Ledger
from fedprune.privacy.release import Occasion, Release
from tests.runs import tiny

FREE = Release("model", ("values",), "down", mechanism="post-processing", covered=True, reason="x")
OPEN = Release("counts", ("labels",), reason="as it is")


def gaussian(clip: float, sensitivity: float, z: float) -> Release:
    return Release(
        *("changes", ("values",), "up", "client", "gaussian", clip, sensitivity, z), covered=True
    )


def booked(terms: AccountingTerms, *booked_: tuple[Occasion, tuple[Release, ...]]) -> Ledger:
    ledger = Ledger(terms)
    for occasion, releases in booked_:
        ledger.book(occasion, releases)
    return ledger


def cohort(round_: int, order: int = 0, kind: str = "tune", *partitions: int) -> Occasion:
    return Occasion("pruned", round_, kind, order, "cohort", partitions or (0, 1, 2), 12)


@pytest.mark.slow
def test_what_one_cohort_is_asked_in_one_round_is_one_draw():
    terms = AccountingTerms("client", "fixed", 3, 12)
    scores, changes = gaussian(1.0, math.sqrt(2.0), 3.0), gaussian(0.5, 1.0, 4.0)
    ledger = booked(
        terms,
        (cohort(1, 0, "score"), (scores, FREE)),
        (cohort(1, 1), (changes, FREE)),
        (cohort(2, 0, "score", 4, 5, 6), (scores, FREE)),
        (cohort(2, 1, "tune", 4, 5, 6), (changes, FREE)),
        (cohort(3), (changes, OPEN)),
    )
    wanted = (Noised(1.0, 3.0, signed=False), Noised(0.5, 4.0))
    assert replayed(ledger.lines, terms) == Audited(
        (Draw(wanted, 0.25, 2), Draw(wanted[1:], 0.25)), "fixed"
    )


def test_measuring_asks_everyone_and_poisson_cohorts_have_their_rate():
    terms = AccountingTerms("client", "poisson", 6, 12)
    everyone = Occasion("pruned", 1, "evaluate", 1, "everyone", tuple(range(12)), 12)
    ledger = booked(
        terms,
        (cohort(1), (gaussian(0.5, 0.5, 4.0),)),
        (everyone, (gaussian(10.0, 10.0, 9.0),)),
    )
    assert replayed(ledger.lines, terms) == Audited(
        (Draw((Noised(0.5, 4.0),), 0.5), Draw((Noised(10.0, 9.0),))), "poisson"
    )


def test_the_two_sides_are_as_far_apart_as_was_booked():
    """Votes are booked with a distance that is neither 2 nor sqrt(2) norms."""
    terms = AccountingTerms("client", "fixed", 12, 12)
    ledger = booked(terms, (cohort(1), (gaussian(10.0, 12.0, 2.0),)))
    assert replayed(ledger.lines, terms).draws[0].sums == (Noised(6.0, 2.0),)


def test_a_secure_sum_hides_no_cohort_and_its_noise_is_that_of_a_gaussian():
    terms = AccountingTerms("client", "fixed", 3, 12, secure="secagg")
    skellam = Release(
        *("changes", ("values",), "up", "client", "skellam", 1.0, 2.0, None, (0.125, 1e-9)),
        covered=True,
    )
    ledger = booked(terms, (cohort(1), (skellam,)))
    assert replayed(ledger.lines, terms) == Audited((Draw((Noised(1.0, 2.0),), 1.0),), "fixed")


def test_of_examples_those_of_the_partition_that_was_asked_most():
    terms = AccountingTerms("example", "fixed", 2, 4)
    steps = Release(
        *("changes", ("values",), "up", "example", "sampled-gaussian", 1.0, 1.0, 1.5),
        steps=5,
        rate=0.1,
        covered=True,
    )
    ledger = booked(
        terms,
        (cohort(1, 0, "tune", 0, 1), (steps,)),
        (cohort(2, 0, "tune", 1, 2), (steps,)),
    )
    assert replayed(ledger.lines, terms) == Audited(
        (Draw((Noised(1.0, 1.5),), 0.1, 10),), "poisson"
    )


def test_without_noise_there_is_nothing_to_audit():
    for dp in ("none", "client", "example"):
        terms = AccountingTerms(dp)
        assert replayed(booked(terms, (cohort(1), (FREE, OPEN))).lines, terms) is None


@pytest.mark.slow
def test_a_real_ledger_is_replayed_with_all_its_sums(tmp_path):
    from fedprune import federate
    from fedprune.config.terms import accounting_terms_of
    from fedprune.privacy.ledger_file import LEDGER_NAME, read_ledger

    config = tiny(model="mlp", dp="client", dp_noise=2.0, rounds=3, warmup=1, end=3)
    federate(config, folder=tmp_path)
    lines = read_ledger(tmp_path / LEDGER_NAME)
    mechanism = replayed(lines, accounting_terms_of(config))
    noised = [x for x in lines if x["mechanism"] == "gaussian"]
    assert sum(len(d.sums) * d.times for d in mechanism.draws) == len(noised) > 3
    assert {d.rate for d in mechanism.draws} == {0.6, 1.0}
    assert {n.z for d in mechanism.draws for n in d.sums} == {2.0}
