"""What occurs twice in what a run leaves behind is the same figure."""

import html
import json
import re
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedprune.config import recorded
from fedprune.report.closing import closing_lines, in_bytes
from fedprune.report.reading import SPACE, read_run, size, whole


@pytest.fixture(scope="module")
def summary(run_folder) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((run_folder / "summary.json").read_text())
    return told


@pytest.fixture(scope="module")
def page(run_folder) -> str:
    text = (run_folder / "report.html").read_text("utf-8")
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).replace(SPACE, " ").split())


def test_screen_and_page_say_the_sizes_of_the_summary(summary, page, run_folder):
    screen = "\n".join(closing_lines(summary, run_folder))
    disk, sent = summary["bytes_on_disk"], summary["bytes_up"] + summary["bytes_down"]
    assert f"on disk   {in_bytes(disk['pruned'])}, dense {in_bytes(disk['dense'])}" in screen
    assert re.search(rf"size on disk {in_bytes(disk['pruned'])} \S+ % of", page)
    assert f"of {in_bytes(disk['dense'])} dense" in page
    assert f"{in_bytes(summary['bytes_evaluation'])} more to measure" in screen
    assert f"Evaluation, counted apart: {in_bytes(summary['bytes_evaluation'])}." in page
    assert f"sent      {in_bytes(sent)} to score and tune" in screen
    assert f"sent up and down {in_bytes(sent)} " in page
    kept, all_ = whole(summary["kept_parameters"]), whole(summary["prunable_parameters"])
    assert f"kept      {kept} of {all_} prunable weights" in screen
    assert f"{kept} of {all_}" in page
    assert summary["command"] in screen
    assert summary["command"] in page


def test_the_table_of_figures_has_the_sizes_of_the_summary(summary, run_folder):
    figures = json.loads((run_folder / "figures.json").read_text())
    for name, bytes_ in summary["bytes_on_disk"].items():
        assert figures[name]["bytes_sparse"] == bytes_
    assert (run_folder / "model.fedprune").stat().st_size == summary["bytes_on_disk"]["pruned"]
    assert figures["dense"]["parameters"] == summary["parameters"]
    assert figures["pruned"]["parameters"] == summary["parameters_left"]


def test_the_last_row_is_what_the_summary_says(summary, run_folder):
    run = read_run(run_folder)
    last = [row for row in run.rows if row["arm"] == run.main][-1]
    same = ("bytes_up", "bytes_down", "bytes_dense", "sparsity", "mask_digest", "weights_digest")
    assert {key: last[key] for key in same} == {key: summary[key] for key in same}
    assert last["bytes_evaluation"] < summary["bytes_evaluation"], "the test split comes after it"
    assert summary["rounds_completed"] == summary["rounds"] == last["round"]
    events = EventAccumulator(str(run_folder / "tensorboard" / run.main)).Reload()
    for key in ("bytes_up", "bytes_evaluation", "sparsity", "loss"):
        assert events.Scalars(key)[-1].value == pytest.approx(last[key], rel=1e-6)


def test_the_configuration_is_the_summary_s(summary, run_folder, page):
    config = recorded((run_folder / "config.toml").read_text())
    for key in ("task", "clients", "cohort", "hosts", "engine", "seed", "split", "rounds"):
        assert summary[key] == vars(config)[key]
    assert f"on {config.hosts} hosts of the engine {config.engine}, with seed {config.seed}" in page
    assert f"split as {config.split}" in page


@pytest.mark.parametrize("count", [0, 7, 999, 999.6, 1000, 56_011, 999_499, 999_500, 3.2e9])
def test_bytes_are_the_same_words_on_screen_and_page(count):
    assert in_bytes(count) == size(count).replace(SPACE, " ")
