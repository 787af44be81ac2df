"""Trials as a table: order, means over seeds, what is missing."""

import math

import pytest

from fedprune.attacks.page import decibels, error_cell, over_seeds, pivot, share_cell
from fedprune.report.reading import NO_VALUE

FIGURES = [
    {"quantity": q, "protection": p, "seed": seed, "mse": mse, "right": right}
    for q, p, seed, mse, right in [
        ("g", "plain", 0, 0.0, 1.0),
        ("g", "plain", 1, 1e-12, 1.0),
        ("g", "noise", 0, 0.1, 0.0),
        ("g", "noise", 1, 0.3, 1.0),
        ("w", "plain", 0, 0.25, None),
    ]
]


def test_a_row_a_quantity_and_a_column_a_protection_in_their_order():
    table = pivot(FIGURES, error_cell)
    assert table.columns == ["quantity", "plain", "noise"]
    assert [row[0] for row in table.rows] == ["g", "w"]
    assert table.rows[0][1] == "exact"
    assert table.rows[0][2].startswith("0.200 ± 0.141, 7 dB")
    assert table.rows[1][2] == NO_VALUE


def test_what_was_not_measured_has_no_share():
    assert pivot(FIGURES, share_cell("right")).rows == [
        ["g", "100 ± 0 %", "50 ± 71 %"],
        ["w", NO_VALUE, NO_VALUE],
    ]


def test_one_seed_has_no_spread():
    one = [f for f in FIGURES if f["seed"] == 0]
    assert pivot(one, share_cell("right")).rows[0] == ["g", "100 %", "0 %"]
    assert pivot(one, error_cell).rows[0] == ["g", "exact", "0.100, 10 dB"]


def test_spread_is_over_seeds_and_not_over_trials():
    trials = [{"seed": s, "x": x} for s, x in [(0, 1.0), (0, 3.0), (1, 2.0)]]
    assert over_seeds(trials, "x") == (2.0, 0.0)


def test_decibels():
    assert decibels(0.01) == pytest.approx(20.0)
    assert math.isfinite(decibels(0.0))
