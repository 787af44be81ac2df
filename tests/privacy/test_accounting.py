"""Epsilon against numbers from elsewhere, and the laws of composition."""

import pytest

from fedprune.privacy.accounting import Tally, added, rdp_epsilon
from fedprune.privacy.closing import closed
from fedprune.privacy.release import Occasion, Release
from fedprune.privacy.terms import Terms

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
    tally = Tally()
    for occasion, releases in questions:
        tally = added(tally, terms, occasion, releases)
    rdp = rdp_epsilon(tally.profiles(), terms.relation, terms.delta)
    return rdp, closed(tally.profiles(), terms, rdp)


def noisy(z, quantity="changes", **more):
    more = {"unit": "client", "mechanism": "gaussian"} | more
    return Release(quantity, ("values",), z=z, covered=True, **more)


def question(round_, partitions, population, arm="pruned", audience="cohort", order=0):
    return Occasion(arm, round_, "tune", order, audience, tuple(partitions), population)


def clients(rate, z, rounds):
    terms = Terms(dp="client", cohort=round(rate * 100), population=100)
    return terms, [(question(r, range(terms.cohort), 100), [noisy(z)]) for r in range(rounds)]


def examples(rate, z, steps):
    step = noisy(z, unit="example", mechanism="sampled-gaussian", rate=rate, steps=steps)
    return Terms(dp="example"), [(question(1, range(3), 3), [step])]


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
