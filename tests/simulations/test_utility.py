from collections import Counter

import pytest
import torch

from fedprune.privacy.accounting import rdp_epsilon
from fedprune.privacy.accounting_terms import REPLACE
from fedprune.privacy.mechanisms import Event
from simulations import utility
from simulations.utility import noise_for_one, utility_findings
from simulations.utility_figures import Cell, utility_table


@pytest.mark.parametrize("epsilon", [1.0, 4.0, 10.0])
def test_the_noise_for_one_release_spends_its_epsilon(epsilon):
    z = noise_for_one(epsilon)
    spent = rdp_epsilon([Counter({Event(z=z): 1})], REPLACE, 1e-5)
    assert 0.99 * epsilon <= spent <= epsilon


def test_overlap_is_the_part_of_the_other_mask_that_is_kept():
    one = {"a": torch.tensor([True, True, False, False])}
    other = {"a": torch.tensor([True, False, True, True])}
    assert utility._overlap(one, other) == pytest.approx(1 / 3)
    assert utility._overlap(one, one) == 1.0


def test_the_table_says_mean_and_spread():
    cells = [
        Cell("clients' scores alone", "random", None, 0.0, [10.0, 12.0]),
        Cell("examples, all", "magnitude", 4.0, 3.9, [20.0, 20.0], [0.25, 0.35]),
    ]
    table = utility_table(cells, "perplexity")
    assert table.rows[0][2:] == ["infinite", "-", "11.00 (1.41)", "-"]
    assert table.rows[1][2:] == ["4", "3.90", "20.00 (0.00)", "30.0% (7.1%)"]


@pytest.mark.slow
def test_whole_runs_spend_what_they_say(monkeypatch):
    small = {**utility.TASKS["digits"], "rounds": 2, "warmup": 1, "local_steps": 2}
    monkeypatch.setitem(utility.TASKS, "digits", small)
    runs = 0

    def tick() -> None:
        nonlocal runs
        runs += 1

    (section,), figures = utility_findings("digits", [0], [10.0], tick)
    cells = {(c["setting"], c["method"], c["epsilon"]): c for c in figures["cells"]}
    assert runs == len(cells) == 3 + 2 + 2 + 4
    assert all(c["spent"] <= 10.0 for c in cells.values())
    noised = cells["clients' scores alone", "weight scores", 10.0]
    assert 0.0 < noised["overlap"][0] < 1.0
    assert section.table is not None
    assert len(section.table.rows) == len(cells)
    assert [p.name for p in section.pictures] == ["epsilon-digits"]
    assert section.pictures[0].figure is not None
    assert "Perplexities" not in section.pictures[0].finding
