import json

import pytest
import torch
from torch import nn

from fedprune import load
from fedprune.codec.masks import decode_mask
from fedprune.config import configure, from_toml
from fedprune.export.measure import Forward
from fedprune.records.figures import compare_speed, figures_of, figures_of_run
from fedprune.report.figures import UNCHANGED, figure_table, figures_in, notes_on
from fedprune.report.reading import read_run
from fedprune.tasks.networks import ConvNet
from tests.report.pages import write_page
from tests.runs import tiny


def test_figures_of_a_run_are_those_of_its_files(run_folder):
    told = json.loads((run_folder / "figures.json").read_text())
    summary = json.loads((run_folder / "summary.json").read_text())
    assert told["pruned"]["bytes_sparse"] == (run_folder / "model.fedprune").stat().st_size
    assert told["pruned"]["parameters"] == told["dense"]["parameters"] == summary["parameters"]
    gone = summary["prunable_parameters"] - summary["kept_parameters"]
    zeros = told["pruned"]["parameters"] - told["pruned"]["nonzeros"]
    assert gone <= zeros <= gone + 64  # some biases have not left 0
    assert told["pruned"]["flops"] == told["dense"]["flops"] > 0
    assert "latency" not in told["pruned"], "nothing was cut: there is nothing to time"


def test_masks_that_nobody_kept_are_read_off_the_zeros(run_folder):
    config = configure(from_toml((run_folder / "config.toml").read_text()))
    model, masks = load(run_folder), decode_mask((run_folder / "mask").read_bytes())
    known, guessed = figures_of(model, config, masks), figures_of(model, config)
    assert abs(known["bytes_sparse"] - guessed["bytes_sparse"]) < 100


def test_a_model_that_was_cut_is_timed():
    small = ConvNet(side=8, channels=(2, 2), hidden=4, classes=10).eval()
    told = figures_of_run(small, tiny(), {})
    assert told["pruned"]["flops"] < told["dense"]["flops"]
    assert len(told["pruned"]["latency"]) == len(told["dense"]["latency"]) == 3
    assert notes_on(told["pruned"], told["dense"]) == []
    table = figure_table(told, "accuracy")
    said = {row[0]: row[1:] for row in table.rows}
    assert said["forward pass (quartiles)"][2].endswith(")")
    assert "times as fast" in said["forward pass (quartiles)"][2]


def test_one_who_works_less_is_faster():
    layers = [nn.Linear(256, 256) for _ in range(40)]
    long, short = nn.Sequential(*layers), nn.Sequential(*layers[:2])
    forward = Forward((torch.ones(8, 256),), {})
    mine, theirs = compare_speed(short, long, forward, repeats=5, warmup=1)
    assert mine["speedup"][0] > 2
    assert mine["latency"][0] < theirs["latency"][0]


@pytest.mark.parametrize(
    ("sparse", "parameters", "notes"),
    [(50, 100, [UNCHANGED]), (50, 90, []), (401, 100, []), (None, 100, [])],
)
def test_zeros_alone_are_not_sold_as_speed(sparse, parameters, notes):
    model = {"bytes_sparse": sparse, "bytes_dense": 400, "parameters": parameters}
    assert notes_on(model, {"parameters": 100}) == notes


@pytest.mark.slow
def test_the_table_is_in_the_report_of_a_run_that_has_figures(run_folder, make_run):
    assert figures_in(read_run(make_run()))[0].rows == []
    assert "Size and speed" not in write_page(make_run()).read_text()
    page = write_page(run_folder).read_text()
    assert "Size and speed" in page
    assert UNCHANGED in page
    table, _ = figures_in(read_run(run_folder))
    assert all(cell in page for row in table.rows for cell in row)


def test_what_nobody_measured_has_no_row():
    table = figure_table({"one": {"parameters": 5, "flops": None}}, "loss")
    assert table.columns == ["figure", "one"]
    assert table.rows == [["parameters", "5"]]
