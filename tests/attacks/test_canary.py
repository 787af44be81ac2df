from dataclasses import replace

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from fedprune.attacks.canary import Audited, Draw, Noised, audit
from fedprune.attacks.canary_report import canary_findings
from fedprune.attacks.one_run import cap
from fedprune.privacy.noise import seeded_source

DELTA = 1e-5

ONE = Noised(1.0, 2.2)
MECHANISMS = {
    "replace one": Audited((Draw((ONE,)),)),
    "add or remove one": Audited((Draw((ONE,)),), "poisson"),
    "without negative values": Audited((Draw((Noised(0.3, 2.2, signed=False),)),)),
    "many sums": Audited((Draw((Noised(0.3, 7.0),), times=10),)),
    "two kinds": Audited((Draw((Noised(1.0, 3.2), Noised(0.1, 3.2, signed=False))),)),
    "sampled": Audited((Draw((Noised(1.0, 4.0), Noised(2.0, 4.0)), 0.25, 20),), "poisson"),
}


def claim(mechanism: Audited) -> float:
    """Epsilon by an exact accountant; cohorts without replacement are not among them."""
    accountant = PLDAccountant()
    for drawn in mechanism.draws:
        event = dp_accounting.GaussianDpEvent(sum(n.z**-2 for n in drawn.sums) ** -0.5)
        if drawn.rate < 1.0:
            event = dp_accounting.PoissonSampledDpEvent(drawn.rate, event)
        accountant.compose(event, drawn.times)
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_right_mechanism_passes_and_a_broken_one_does_not(name):
    mechanism = MECHANISMS[name]
    claimed = claim(mechanism)
    many = 400 if name == "sampled" else 200
    sizes = {"canaries": many, "size": 4 * many}
    assert 1.5 < claimed < 2.0

    def caught(**broken: object) -> int:
        changed = replace(mechanism, **broken)
        bounds = [
            audit(changed, DELTA, seeded_source(s, "noise"), **sizes, seed=s).bound
            for s in range(20)
        ]
        return sum(bound > claimed for bound in bounds)

    assert caught() <= 1
    assert caught(noise=0.0) >= 19
    assert caught(clipping=False) >= 19


def test_a_cohort_of_fixed_size_is_audited_as_one():
    mechanism = Audited((Draw((Noised(1.0, 1.5),), 0.25, 10),))
    found = [
        audit(m, DELTA, seeded_source(3, "noise"), canaries=200, size=800, seed=3)
        for m in (mechanism, replace(mechanism, noise=0.0))
    ]
    assert found[0].bound < 1.0 < 3.0 < found[1].bound
    assert found[0].cap == found[1].cap == cap(200, 100, DELTA)


def test_the_same_seed_gives_the_same_audit_and_too_few_coordinates_are_refused():
    mechanism = Audited((Draw((Noised(1.0, 1.0),)),))
    first, second = (
        audit(mechanism, DELTA, seeded_source(1, "noise"), canaries=50, size=200, seed=1)
        for _ in range(2)
    )
    assert first == second
    assert first.guesses == 25
    with pytest.raises(ValueError, match="50 canaries in 99 coordinates"):
        audit(mechanism, DELTA, seeded_source(0, "x"), canaries=50, size=99, seed=0)


def test_a_row_for_every_noise_and_every_mistake(monkeypatch):
    monkeypatch.setattr("fedprune.attacks.canary_report.CANARIES", 200)
    monkeypatch.setattr("fedprune.attacks.canary_report.NOISES", (2.2,))
    told: list[int] = []
    section, figures = canary_findings(range(5), 1e-5, lambda: told.append(1))
    right, silent, loud = figures["rows"]
    assert len(told) == len(section.table.rows) == 3
    assert right["claim"] == pytest.approx(1.95, abs=0.05)  # 1.79 exactly, by Rényi a little more
    assert (right["caught"], silent["caught"], loud["caught"]) == (0, 5, 5)
    assert right["largest"] < right["claim"] < silent["mean"] <= silent["cap"] < 3.5
    assert section.table.rows[1][1] == "without noise"
    assert section.table.rows[1][-1] == "5 of 5"
    assert all(len(row) == len(section.table.columns) for row in section.table.rows)
