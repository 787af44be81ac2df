"""The words follow from what left, not from what was asked for."""

import pytest

from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.ledger import Ledger
from fedprune.privacy.release import Release
from fedprune.privacy.statement import PROTECTIONS, protection
from tests.privacy.booking import RAW, noisy, question

MODEL = Release("model", ("weights",), "down", mechanism="post-processing", covered=True)


def booked(terms, *releases):
    ledger = Ledger(terms)
    ledger.book(question(1, range(5), 20), releases)
    return ledger


def said(terms, *releases):
    return booked(terms, *releases).closing()["statement"]


def test_without_noise_it_claims_nothing():
    text = said(AccountingTerms(), RAW)
    assert "No differential privacy" in text
    assert "epsilon is infinite" in text
    assert "Not protected: counts (weights are sent as they are)." in text
    assert "Trusted: everybody." in text
    assert "hides" not in text


@pytest.mark.slow
def test_it_says_unit_relation_delta_sampling_and_what_nothing_covers():
    terms = AccountingTerms(dp="client", cohort=5, population=20, delta=1e-5)
    text = said(terms, noisy(), MODEL, RAW)
    assert "one client's whole data" in text
    assert "replace-one (the part being another)" in text
    assert "delta = 1e-05" in text
    assert "fixed 5 of 20" in text
    assert "publish the model, not the folder" in text
    assert "At no cost: model." in text
    assert "the run's total is infinite" in text
    assert "Delta is large" not in text
    assert "total is infinite" not in said(terms, noisy(), MODEL)
    large = AccountingTerms(dp="client", population=20, delta=0.01)
    assert "Delta is large" in said(large, noisy())


def test_epsilon_in_the_words_is_that_of_the_summary():
    terms = AccountingTerms(dp="client", sampling="poisson", cohort=5, population=20)
    ledger = booked(terms, noisy())
    closing = ledger.closing()
    assert closing["pld"] < closing["rdp"] == ledger.epsilon
    assert f"epsilon = {closing['pld']:.4g} at" in closing["statement"]


EXAMPLES = noisy(4.0, "sampled-gaussian", unit="example", rate=0.1, steps=3)
SKELLAM = noisy(None, "skellam", spread=(0.01, 0.0))
KINDS = [
    ("no protection", {}, RAW),
    ("central noise", {"dp": "client"}, noisy()),
    ("noise on examples", {"dp": "example"}, EXAMPLES),
    ("secure sums", {"secure": "secagg"}, RAW),
    ("secure sums with noise", {"dp": "client", "secure": "secagg"}, SKELLAM),
    ("randomised response", {}, noisy(None, "randomised-response", pure=1.0, coordinates=8)),
]


@pytest.mark.parametrize(("kind", "terms", "release"), KINDS, ids=[k for k, _, _ in KINDS])
def test_each_protection_has_its_words(kind, terms, release):
    ledger = booked(AccountingTerms(**terms, population=20), release)
    assert protection(ledger.terms, ledger.lines) == kind
    text = ledger.closing()["statement"]
    assert f"Seen under {kind}: by the server: {PROTECTIONS[kind].server}" in text
    assert "does not follow the protocol" in text
    assert ("seed" in text) == (kind not in {"no protection", "secure sums"})


def test_before_anything_protected_left_it_does_not_speak_of_infinity():
    ledger = booked(AccountingTerms(dp="client"), MODEL)
    closing = ledger.closing()
    assert closing["total"] == 0.0
    assert "Nothing that left was made from protected data." in closing["statement"]
    assert "infinite" not in closing["statement"]


def test_a_vote_by_randomised_response_is_not_protected_by_a_draw():
    vote = noisy(None, "randomised-response", pure=0.5)
    text = said(AccountingTerms(cohort=5, population=20), vote)
    assert "Cohorts: fixed 5 of 20. Epsilon is that of the client that was asked most often" in text
    assert "Epsilon counts on nobody knowing" not in text


def test_secret_noise_and_the_panel_are_told_as_they_are():
    secret = said(AccountingTerms(dp="client", noise_source="secret", panel=2), noisy())
    assert "knows the seed" not in secret
    assert "2 clients that only measure (the panel)" in secret
