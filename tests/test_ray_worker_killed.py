"""A worker process that dies costs nothing but time, though it was the only one.

The command as a user types it, on a Ray of its own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedprune import federate
from fedprune.config import configure

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CONFIG: dict[str, Any] = {
    "task": "digits",
    "clients": 8,
    "cohort": 4,
    "hosts": 4,
    "rounds": 8,
    "local-steps": 40,
}


def started(folder: Path, **config: Any) -> subprocess.Popen[str]:
    options = [part for key, value in config.items() for part in (f"--{key}", str(value))]
    ray = ("--engine", "ray", "--workers", "1", "--out", str(folder))
    return subprocess.Popen(
        [sys.executable, "simulations/run.py", *options, *ray],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


@pytest.fixture
def stopped() -> Iterator[list[subprocess.Popen[str]]]:
    """Runs to stop by their ids, should a test fail before they end."""
    runs: list[subprocess.Popen[str]] = []
    yield runs
    for run in runs:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait(10)


def parents() -> dict[int, int]:
    """Process id to its parent's."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                stat = (path / "stat").read_text()
            except OSError:
                continue  # it ended while we looked
            found[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def workers_of(run: int) -> list[int]:
    """Ray's client workers among the descendants of a process.

    Ray rewrites a worker's title at each call, so that one look may miss one that works.
    """
    parent = parents()

    def descends(pid: int) -> bool:
        while pid not in (0, 1, run):
            pid = parent.get(pid, 0)
        return pid == run

    return sorted(p for p in parent if "ray::Worker" in command_of(p) and descends(p))


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def rounds_in(folder: Path) -> int:
    rows = folder / "rounds.jsonl"
    return len(rows.read_text().splitlines()) if rows.is_file() else 0


def test_the_run_goes_on_to_the_same_bits(tmp_path, stopped):
    out = tmp_path / "run"
    run = started(out, **CONFIG)
    stopped.append(run)
    workers, deadline = list[int](), time.monotonic() + 900
    while not (workers and rounds_in(out)):
        assert time.monotonic() < deadline
        assert run.poll() is None
        workers = workers or workers_of(run.pid)
        time.sleep(0.05 if workers else 0.2)
    (worker,) = workers
    os.kill(worker, signal.SIGKILL)
    printed, _ = run.communicate(timeout=900)
    assert run.returncode == 0, printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds_completed"] == 8
    assert summary["failures"] == 0, "the host that was lost is asked once more"
    assert summary["weights_digest"] == federate(configure(CONFIG)).summary["weights_digest"]
