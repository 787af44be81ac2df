"""The command from outside, as a user starts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

import fedprune
from fedprune.codec.masks import decode_mask, mask_digest
from fedprune.tensors.models import state_of
from fedprune.tensors.named import digest
from simulations.run import main
from tests.runs import with_pages

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--task", "digits", "--clients", "6", "--local-steps", "2"]
QUICK = [*SMALL, "--engine", "inline", "--rounds", "4"]


PROGRAM = [sys.executable, str(ROOT / "simulations/run.py")]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, cwd=ROOT)


def here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which need not import anything first."""
    out, errors = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            code: object = main(list(arguments))
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):  # Python itself prints it, and ends with 1
        errors.write(code)
    status = code if isinstance(code, int) else int(code is not None)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), errors.getvalue())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--score", "tailor"], ["score='tailor'", "did you mean taylor?", "allowed:"]),
        (["--clients", "5000"], ["clients=5000", "allowed: 1 to"]),
        (["--task", "fashion-mnist", "--data", "/nowhere"], ["data=/nowhere", "apt-get install"]),
        (["--task", "digits", "--clients", "300"], ["clients=300", "at least 10 rows each"]),
        (["--exclude", "nothing*", "--task", "digits"], ["'nothing*'", "matches no parameter"]),
    ],
)
def test_bad_input_exits_2_with_one_line_and_no_traceback(arguments, words, tmp_path):
    start = command if "--score" in arguments else here  # one of them from outside
    done = start(*arguments, "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("run.py: error: ")
    assert all(word in lines[0] for word in words)
    assert not (tmp_path / "run").exists()


def test_where_nothing_can_be_written_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        done = here("--task", "digits", "--out", str(out))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"run.py: error: out='{out}': {tmp_path / 'file'} is")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "one"
    with with_pages():
        done = here(*QUICK, "--baselines", "dense,random", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_leaves_all_its_results_and_is_not_overwritten(finished):
    folder, _ = finished
    before = (folder / "rounds.jsonl").read_text()
    done = here(*QUICK, "--out", str(folder))
    assert (done.returncode, "holds a run already" in done.stderr) == (2, True)
    assert (folder / "rounds.jsonl").read_text() == before
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    wanted = "config.toml rounds.jsonl timings.jsonl summary.json report.html model.fedprune mask"
    wanted += " mask.sha256 model/model.safetensors checkpoint/pruned.safetensors"
    assert {*wanted.split()} <= there
    assert any(name.startswith("plots/") and name.endswith(".png") for name in there)
    assert any("tfevents" in name for name in there)


def test_the_summary_tells_what_is_on_disk(finished):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    masks = decode_mask((folder / "mask").read_bytes())
    kept = sum(int(m.sum()) for m in masks.values())
    total = sum(m.numel() for m in masks.values())
    assert summary["kept_parameters"] == kept
    assert summary["prunable_parameters"] == total
    assert summary["sparsity"] == (total - kept) / total
    assert total - kept == int(0.8 * total + 0.5)
    assert summary["mask_digest"] == mask_digest(masks)
    assert summary["mask_digest"] == (folder / "mask.sha256").read_text().strip()
    assert summary["bytes_on_disk"]["pruned"] == (folder / "model.fedprune").stat().st_size
    model = fedprune.load(folder)
    assert digest(state_of(model)) == summary["weights_digest"]
    for name, mask in masks.items():
        assert torch.count_nonzero(state_of(model)[name][~mask]) == 0
    assert {"dense_at_pruning", "final", "dense", "random"} == set(summary["quality"])
    assert summary["rounds_completed"] == 4
    assert summary["failures"] == 0


def test_the_screen_shows_what_runs_each_round_and_what_came_out(finished):
    folder, screen = finished
    for words in ("6 clients, split dirichlet", "12,944 of them prunable", "training examples"):
        assert words in screen
    for words in ("sparsity    loss   accuracy", "dense, when pruning", "random baseline, at the"):
        assert words in screen
    assert f"{folder / 'report.html'}" in screen
    assert f"--config {folder / 'config.toml'}" in screen
    arms = ("pruned ", "dense ", "random ")
    assert sum(line.startswith(arms) for line in screen.splitlines()) == 12
    assert "\x1b" not in screen  # plain lines, this is no terminal


def test_a_written_configuration_repeats_the_run_bit_for_bit(finished, tmp_path, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(tmp_path)
    done = here("--config", str(folder / "config.toml"))  # as it is
    assert done.returncode == 0, done.stderr
    (again,) = (tmp_path / "runs").iterdir()
    assert (again / "rounds.jsonl").read_text() == (folder / "rounds.jsonl").read_text()


def test_killed_and_resumed_ends_with_the_same_bits(finished, tmp_path):
    whole, _ = finished
    folder = tmp_path / "killed"
    arguments = [*QUICK, "--baselines", "dense,random", "--out", str(folder)]
    child = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.DEVNULL, cwd=ROOT)
    rows = folder / "rounds.jsonl"
    deadline = time.monotonic() + 900
    while not rows.exists() or rows.read_text().count("\n") < 2:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = here("--resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert rows.read_text() == (whole / "rounds.jsonl").read_text()
    one, two = (json.loads((f / "summary.json").read_text()) for f in (whole, folder))
    changed = dict.fromkeys(("seconds", "command", "resume", "provenance"))
    assert one | changed == two | changed


def test_a_damaged_folder_is_not_resumed(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    checkpoint = folder / "checkpoint/pruned.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-100])
    done = here("--resume", str(folder))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "pruned.safetensors: damaged" in done.stderr
    checkpoint.write_bytes(whole)
    (folder / "rounds.jsonl").unlink()
    done = here("--resume", str(folder))
    assert (done.returncode, "rounds.jsonl is gone" in done.stderr) == (2, True)


@pytest.mark.usefixtures("pages")
def test_a_run_in_which_every_client_fails_exits_non_zero(tmp_path):
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "from dataclasses import replace\n"
        "from fedprune import TASKS as ours\n"
        "def loss(model, batch):\n"
        "    if len(batch['labels']) > 4:  # more than are tried before round one\n"
        "        raise RuntimeError('out of order')\n"
        "    return ours['digits'].loss(model, batch)\n"
        "TASKS = {'broken': replace(ours['digits'], loss=loss)}\n"
    )
    folder = tmp_path / "run"
    done = here(*QUICK[2:], "--task", "broken", "--plugin", str(plugin), "--out", str(folder))
    assert done.returncode == 1
    assert "no round was completed" in done.stderr
    assert "Traceback" not in done.stderr
    row = json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])
    assert row["failures"][0]["reason"] == "RuntimeError: out of order"
    assert (folder / "report.html").is_file()


def test_the_list_and_the_help_end_well():
    for option, word in (("--list", "taylor_signed"), ("--help", "to begin:")):
        done = here(option)
        assert (done.returncode, word in done.stdout) == (0, True)


@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_interrupted_it_says_how_to_go_on(engine, tmp_path):
    folder = tmp_path / "run"
    arguments = [*SMALL, "--engine", engine, "--rounds", "200", "--out", str(folder)]
    child = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        # In a background job it is ignored, and so it would be in the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout is not None
    assert any(line.startswith("pruned      3") for line in child.stdout)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 130
    assert f"to go on: fedprune run --resume {folder}" in errors
    assert "Traceback" not in errors
    assert len((folder / "rounds.jsonl").read_text().splitlines()) >= 3
