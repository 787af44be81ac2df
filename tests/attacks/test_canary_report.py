import pytest

from fedprune.attacks.canary_report import canary_findings


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
