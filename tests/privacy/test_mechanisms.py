"""Every mechanism of the table: what it costs, that more noise costs less, and its words."""

import pytest

from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.mechanisms import MECHANISMS, mechanism_of
from fedprune.privacy.release import Release
from fedprune.privacy.statement import PROTECTIONS, protection
from tests.privacy.booking import cost, question

SIZES = {"z": 1.0, "spread": (0.5, 0.01), "pure": 0.5}


def released(name: str, unit: str) -> Release:
    how = MECHANISMS[name]
    sizes = {how.sized: SIZES[how.sized]} if how.noised else {}
    return Release("scores", ("values",), "up", unit, name, covered=name != "none", **sizes)


def epsilon(release: Release) -> float:
    unit = "example" if release.unit == "example" else "client"
    return cost(
        AccountingTerms(unit, population=4, cohort=4), [(question(1, range(4), 4), [release])]
    )


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_mechanism_costs_what_its_noise_leaves(name):
    how = MECHANISMS[name]
    assert bool(how.protection) == how.noised
    for unit in how.protection or [""]:
        release = released(name, unit)
        assert (epsilon(release) > 0) == how.noised == release.noised
        if how.sized in {"z", "spread"}:
            assert epsilon(how.wider(release, 2.0)) < epsilon(release) < 100
        else:
            assert how.wider(release, 2.0) == release


@pytest.mark.parametrize("name", [n for n, m in MECHANISMS.items() if m.noised])
def test_a_mechanism_stands_for_a_protection_and_says_its_measure(name):
    for unit, stands_for in MECHANISMS[name].protection.items():
        line = {"mechanism": name, "unit": unit, "covered": True}
        assert protection(AccountingTerms(), [line]) == stands_for
        assert PROTECTIONS[stands_for].trusted
    assert MECHANISMS[name].words.format(1) != MECHANISMS[name].words


def test_an_unknown_mechanism_is_refused():
    with pytest.raises(ValueError, match=r"mechanism='wishes': allowed: none, gaussian"):
        mechanism_of("wishes")
