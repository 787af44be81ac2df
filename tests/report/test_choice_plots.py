"""What was chosen on validation, in the summary, in words and in figures."""

from typing import Any

import pytest

from fedprune import federate
from fedprune.engines.inline import inline_port
from fedprune.records.choices import choices_in
from fedprune.report.choices import (
    NAMED,
    sensitivity_figure,
    sensitivity_finding,
    tried_figure,
    tried_finding,
)
from fedprune.report.pictures import pictures
from fedprune.report.reading import read_run
from fedprune.report.round_table import adaptive_cell, blend_cell, reduced_cell, round_table
from tests.runs import house_of, tiny

TRIED = [[0.0, 2.0], [0.2, 2.01], [0.4, 9.0]]
LAYERS = [
    {"name": "a.0", "sparsity": 0.0, "tried": [[0.3, 2.1], [0.6, 2.5]]},
    {"name": "a.1", "sparsity": 0.0, "tried": [[0.3, 2.0], [0.6, 2.0]]},
]


def told(**changes: Any) -> dict[str, Any]:
    return {
        "action": "prune", "reference": 2.0, "limit": 2.04, "step": 0.4, "took": 1, "tried": TRIED,
        "layers": None,
    } | changes  # fmt: skip


ROWS: list[dict[str, Any]] = [
    {"arm": "pruned", "round": 1, "adaptive": None},
    {"arm": "pruned", "round": 2, "adaptive": told(layers=LAYERS)},
    {"arm": "pruned", "round": 3, "adaptive": told(action="step back", took=0, tried=TRIED[1:])},
]


def test_the_summary_has_the_history_and_the_first_curves():
    found = choices_in(ROWS)
    assert [(h["round"], h["action"]) for h in found["adaptive"]] == [
        (2, "prune"),
        (3, "step back"),
    ]
    assert all("layers" not in h for h in found["adaptive"])
    assert found["sensitivity"] == {"round": 2, "loss": 2.0, "layers": LAYERS}
    assert choices_in([{"round": 1, "adaptive": None}, {"round": 2}]) == {}


def test_words_and_figure_of_a_history():
    found = choices_in(ROWS)
    text = tried_finding(found["adaptive"])
    assert "In 2 rounds the clients measured 3 masks" in text
    assert "1 was taken, up to a sparsity of 20" in text
    assert "1 time none" in text
    text = sensitivity_finding(found["sensitivity"])
    assert text.index("a.0") < text.index("a.1"), "the one that bears least"
    assert "2.5" in text
    low, high = tried_figure(found["adaptive"]).axes[0].get_ylim()
    assert low < 2.0 < 2.04 < high < 3.0, "not flattened by a ruined model"


@pytest.mark.parametrize(
    ("given", "cell"),
    [
        (told(), "prune: loss 2.00 to 2.01"),
        (told(action="wait", took=0), "wait"),
        ({"shares": {"": 0.75}}, "0.75"),
        ({"shares": {"a": 0.5, "b": 1.25, "c": 1.0}}, "0.5 to 1.25"),
        ({"action": "too few answered"}, "too few answered"),
    ],
)
def test_cells_of_a_round(given, cell):
    assert (blend_cell if "tried" not in given else adaptive_cell)(given) == cell


@pytest.mark.parametrize("count", [1, NAMED, 50])
def test_any_number_of_layers_has_curves(count):
    layers = [{**LAYERS[0], "name": f"blocks.{i}.w"} for i in range(count)]
    axes = sensitivity_figure({"round": 1, "loss": 2.0, "layers": layers}).axes[0]
    assert len(axes.lines) == count
    assert axes.lines[0].get_ydata()[0] == 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_a_run_shows_what_was_chosen_and_others_nothing(tmp_path, run_folder):
    assert not {"tried", "sensitivity"} & pictures(read_run(run_folder)).keys()
    keys = {"schedule": "adaptive", "adaptive": "layer", "tolerance": 0.01, "rounds": 4}
    config = tiny(**keys, end=4, candidates=2, blend="layer", blend_grid=(1.0, 1.5))
    result = federate(config, inline_port(house_of(config)), folder=tmp_path)
    run = read_run(tmp_path)
    assert run.summary["adaptive"] == result.summary["adaptive"]
    assert len(run.summary["sensitivity"]["layers"]) == len(result.state.masks)
    made = pictures(run)
    assert made["tried"].figure is not None
    assert made["sensitivity"].figure is not None
    assert {"tried", "share of the change kept"} <= set(round_table(run, "pruned").columns)
    page = (tmp_path / "report.html").read_text()
    for title in ("Sparsities tried", "Sensitivity"):
        assert f"<h3>{title}</h3>" in page
    assert (tmp_path / "plots" / "sensitivity.png").is_file()


def test_what_was_reduced_is_told_in_a_cell():
    told = {"parameters": 2000, "parameters_after": 1500, "dead": {}, "shared": []}
    assert reduced_cell(told) == "2,000 to 1,500 parameters"
    told |= {"dead": {"a": 2, "b": 1}, "merged": {"a": 4}, "merge_errors": {"a": None}}
    told |= {"ranks": {"u": 3, "v": 7}, "rank_errors": {"u": 0.1, "v": 0.25}}
    cell = "3 dead units; 4 merged; 2 factored, rank 3 to 7; error up to 0.25; "
    assert reduced_cell(told) == f"{cell}2,000 to 1,500 parameters"
