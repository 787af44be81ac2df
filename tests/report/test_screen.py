"""What stands on the screen, on a terminal and elsewhere."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

from fedprune.config import RunConfig, configure, to_toml
from fedprune.protocol.messages import Question
from fedprune.report.closing import _nothing_removed, closing_lines
from fedprune.report.reading import duration
from fedprune.report.remaining import RoundTimes, rounds_left
from fedprune.report.screen import Screen
from fedprune.server.state import Model, State
from fedprune.structure.layout import layout_of
from fedprune.tensors.models import NOTES

ROW = {
    "arm": "pruned",
    "round": 3,
    "phase": "prune",
    "sparsity": 0.5,
    "loss": 2.0,
    "perplexity": 7.389,
    "bytes_up": 1_234_567,
    "bytes_down": 999,
    "failures": [{"partition": 4, "phase": "tune", "field": "values", "reason": "[red]NaN[/red]"}],
}
STATE = State(3, Model({}, {}))


def screen(
    config: RunConfig | None = None, *, terminal: bool = False
) -> tuple[Screen, Callable[[], str]]:
    """A screen on which a run has begun, and what stands on it."""
    out = StringIO()
    shown = Screen(Console(file=out, force_terminal=terminal, width=100, highlight=False))
    shown.opening(config or RunConfig(), Path("runs/x"))
    return shown, out.getvalue


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9995, 0.999999])
def test_a_sparsity_is_said_as_it_was_given(sparsity):
    _, said = screen(RunConfig(sparsity=sparsity))
    words = f"{sparsity} sparsity by taylor" if sparsity else "none"
    assert f"pruning     {words}" in said()


@pytest.mark.parametrize(("sparsity", "said"), [(0.9996, "99.9%"), (1, "100.0%"), (0.5, "50.0%")])
def test_a_round_is_said_to_have_removed_all_only_where_it_has(sparsity, said):
    shown, text = screen()
    watch = shown.watch()
    watch.phase("pruned", Question("tune", 3, {}, {}), 6)
    watch.row({**ROW, "sparsity": sparsity}, 4.25, STATE)
    assert f"prune {said:>11} " in text()


def test_elsewhere_than_on_a_terminal_there_are_plain_lines_only():
    shown, said = screen()
    watch = shown.watch()
    assert "sparsity    loss" not in said()  # until something is asked: it may be refused
    watch.phase("pruned", Question("tune", 3, {}, {}), 6)
    assert "sparsity    loss" in said()
    shown.tick(1)
    watch.row(ROW, 4.25, STATE)
    shown.stop()
    text = said()
    assert "client 4 failed while tuning: values: [red]NaN[/red]" in text, "as it came"
    assert "\x1b" not in text
    assert "tuning" not in text.split("seconds\n")[1].splitlines()[0]
    assert "20 clients, split natural, 6 a round, 24 rounds, 8 hosts" in text
    assert "0.8 sparsity by taylor, scope global, cubic over rounds 9 to 18" in text
    row = next(line for line in text.splitlines() if line.startswith("pruned"))
    assert row.split() == [
        "pruned", "3", "prune", "50.0%", "2.000", "7.389", "1.23", "MB", "999", "B", "4.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "warns"),
    [
        ({"adapters": "lora"}, True),
        ({"method": "fedspine", "warmup": 1, "method_options": {"densities": (1.0, 0.5)}}, True),
        ({"task": "domains", "adapters": "lora", "local_steps": 2}, False),
        ({"task": "r8", "adapters": "lora"}, False),
        ({"adapters": "lora", "init": "RUN"}, False),
        ({}, False),
    ],
)
def test_adapters_of_a_model_that_nothing_trained_are_warned_of_in_a_line(given, warns, tmp_path):
    if "init" in given:
        (tmp_path / "config.toml").write_text(to_toml(RunConfig()))
        given = {**given, "init": str(tmp_path)}
    _, said = screen(configure(given))
    lines = [line for line in said().splitlines() if "learn next to nothing" in line]
    assert len(lines) == warns


def test_on_a_terminal_a_line_lives_while_clients_answer():
    shown, said = screen(terminal=True)
    watch = shown.watch()
    watch.phase("pruned", Question("score", 3, {}, {}), 6)
    shown.tick(2)
    shown.bar.refresh()
    shown.stop()
    assert "pruned  round 3 of 24  scoring" in said()
    assert "2/6" in said()


def test_a_round_that_measured_nothing_has_dashes():
    shown, said = screen()
    shown.watch().row({**ROW, "loss": None, "perplexity": None}, 1.0, STATE)
    shown.stop()
    row = next(line for line in said().splitlines() if line.startswith("pruned"))
    assert row.split()[4:6] == ["-", "-"]


def test_the_end_compares_dense_and_pruned():
    quality = {"loss": 1.0, "perplexity": 2.718, "accuracy": 0.5, "count": 10}
    summary = {
        "metric": "perplexity",
        "quality": {"dense_at_pruning": None, "final": quality, "random": quality},
        "naive": {"perplexity": 27.5},
        "kept_parameters": 20,
        "parameters": 130,
        "parameters_left": 50,
        "prunable_parameters": 100,
        "sparsity": 0.8,
        "sparsity_asked": 0.0,
        "reached": True,
        "sparsity_of_all": 0.7,
        "bytes_on_disk": {"dense": 4000, "pruned": 1000},
        "bytes_up": 100,
        "bytes_down": 100,
        "bytes_dense": 400,
        "bytes_evaluation": 0,
        "failures": 0,
        "command": "again",
    }
    text = "\n".join(closing_lines(summary, Path("runs/x")))
    assert "dense, when pruning began" not in text  # it was not measured
    assert "random baseline, at the end" in text
    assert "label frequencies alone: perplexity 27.5" in text
    assert "20 of 100 prunable weights: sparsity 0.8000, 0.7000 of all" in text
    assert "200 B to score and tune, dense FedAvg 400 B (50%)" in text
    assert "NOT REACHED" not in text
    short = closing_lines({**summary, "reached": False}, Path("runs/x"))
    reason = "too few clients answered before the run was finished"
    assert f"NOT REACHED: {reason}" in short
    for own, word in ((None, "trained"), (0.5, "averaged")):
        told = {**summary, "sparsity": 0.0} | ({"own_sparsity": own} if own else {})
        text = "\n".join(closing_lines(told, Path("runs/x")))
        assert f"  {word}, at the end" in text
        assert "pruned" not in text


def test_data_of_the_earlier_run_that_is_gone_is_told_at_once(tmp_path):
    (tmp_path / "config.toml").write_text(f'task = "fashion-mnist"\ndata = "{tmp_path}/gone"\n')
    _, said = screen(RunConfig(task="digits", init=str(tmp_path)))
    text = " ".join(said().split())
    assert f"its data {tmp_path}/gone is gone: its task cannot be measured" in text


def test_a_model_is_shown_with_what_stays_dense_and_with_its_notes():
    shown, said = screen()
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 4, bias=False))
    setattr(model, NOTES, ("its head begins afresh",))
    shown.model("Own", layout_of(model), RunConfig())
    assert "Own, 16 parameters, 8 of them prunable" in said()
    assert "stays dense 50.0% of all parameters: embeddings 50.0%" in said()
    assert "warning     its head begins afresh" in said()


@pytest.mark.parametrize(("kept", "word"), [(0.0, "NOTHING REMOVED"), (0.3, "SHORT OF WHAT WAS")])
def test_a_pattern_that_comes_short_says_why(kept, word):
    why = "groups of fewer than 4 inputs keep more than 2 of 4"
    what = {"reached": True, "sparsity": kept, "sparsity_asked": 0.5, "short": 0.5 - kept}
    (line,) = _nothing_removed({**what, "short_why": why})
    assert line.startswith(word)
    assert line.endswith(why)


@pytest.mark.parametrize(
    "baselines",
    [(), ("dense",), ("dense", "random"), ("local-only", "dense", "dense-small", "centralised")],
)
def test_what_is_left_is_what_comes(baselines):
    """Every arm, most of them after the warm-up that they share; rounds of three seconds each."""
    config = RunConfig(baselines=baselines, task="digits", clients=30, cohort=10)
    played = [("pruned", i + 1) for i in range(config.rounds)]
    for arm in baselines:
        whole = arm in ("dense-small", "centralised")
        begin = 1 if whole else config.warmup + 1
        played += [(arm, i) for i in range(begin, config.rounds + 1)] * (arm != "local-only")
        played += [("local-only", 0)] * (3 * config.rounds) * (arm == "local-only")
    pace = RoundTimes(config)
    for place, (arm, round_) in enumerate(played):
        left = len(played) - place - 1
        if arm == "local-only":
            continue  # it has no rows
        assert rounds_left(config, arm, round_) == left
        told = pace.left({"arm": arm, "round": round_}, 3.0)
        assert told == (f"about {duration(3.0 * left)} left" if left else "")
