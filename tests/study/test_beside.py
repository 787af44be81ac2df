"""The gap and the spread over clients of several runs, from what their summaries say."""

from pathlib import Path

import numpy as np

from fedprune.report.reading import Run
from fedprune.study.beside import around_pruning, fairness_table, gap_table, recovery_table
from fedprune.study.design import Factors
from fedprune.study.outcomes import StudyOutcome

COLUMNS = ("round", "removed", "loss")
ROWS = [(1, 0, 3.0), (2, 5, 2.5), (3, 9, 2.75), (4, 9, 2.0)]
FACTORS = Factors(("score", "seed"), "score", "")
LOSSES = {"wanda": [(2.0, 1.0, 0.5), (2.2, 1.2, 0.4)], "random": [(2.0, 1.0, 1.9), (1.8, 1.0, 1.8)]}


def outcomes():
    out = []
    for score, runs in LOSSES.items():
        for seed, losses in enumerate(runs):
            sides = zip(("local", "federated", "centralised"), losses, strict=True)
            spread = {"mean": 0.0, "deviation": None, "count": 1}
            gap = {"losses": {s: {**spread, "mean": v} for s, v in sides}, "by_construction": False}
            final = {"worst_tenth": 0.1, "p10": 0.2 + seed, "p50": 0.5, "p90": 0.9}
            told = {"gap_closure": gap, "client_spread": {"of": "accuracy", "final": final}}
            labels = {"score": score, "seed": str(seed)}
            out.append(StudyOutcome("", labels, Path(), Run({}, [], {}, told)))
    return out


def test_the_gap_of_a_study_is_of_means_over_its_seeds():
    wanda, chance = gap_table(outcomes(), FACTORS).rows
    local, ours, pooled = np.mean(LOSSES["wanda"], axis=0)
    assert wanda[4] == f"{(local - ours) / (local - pooled):#.3g}"
    assert wanda[1] == f"2.10 ({np.std([2.0, 2.2], ddof=1):.3f})"
    assert chance[4] == "\u2013"
    assert "twice the standard error" in chance[-1]


def test_the_spread_over_clients_is_a_mean_over_seeds():
    of, table = fairness_table(outcomes(), FACTORS)
    assert of == "accuracy"
    assert table.rows[0] == ["wanda", "0.100 (0)", "0.700 (0.707)", "0.500 (0)", "0.900 (0)"]


def run_of(rows):
    rounds = [{"arm": "pruned", **dict(zip(COLUMNS, row, strict=True))} for row in rows]
    return Run({}, rounds, {}, {})


def test_losses_around_the_last_pruning_and_after_tuning():
    """A round that was not measured in is no number, and a run that removed nothing has none."""
    assert around_pruning(run_of(ROWS)) == (3.0, 2.75, 2.0)
    assert np.isnan(around_pruning(run_of(ROWS[1:]))[0])
    assert around_pruning(run_of(ROWS[:1])) is None
    assert around_pruning(run_of([*ROWS[:2], (3, 9, None), ROWS[3]])) is None
    told = [
        StudyOutcome("", {"score": "wanda", "seed": str(i)}, Path(), run_of(ROWS[i:]))
        for i in (0, 1)
    ]
    (row,) = recovery_table(told, FACTORS).rows
    assert row == ["wanda", "3.00", "2.75 (0)", "2.00 (0)"]
