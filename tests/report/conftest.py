"""Fixtures of run folders that are made up."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fedprune.runtime.sums import SUMS_NAME, check_sums
from tests.report.pages import made_up, row_of

MALICIOUS = "<script>alert(1)</script><img src=x onerror=alert(2)>\ud800\u202e"
Folder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are made up here have no digests; see `tests/records/test_read_again.py`."""

    def check(folder: Path) -> None:
        if (folder / SUMS_NAME).exists():
            check_sums(folder)

    monkeypatch.setattr("fedprune.report.reading.check_sums", check)


@pytest.fixture
def make_run(tmp_path: Path) -> Folder:
    """Write a run folder; what the run was is in the arguments."""
    return partial(made_up, tmp_path)


@pytest.fixture
def failed_run(make_run: Folder) -> Path:
    """A run in which two answers were refused, one of them with a hostile reason."""
    reasons = ("value nan at position 17", MALICIOUS)
    failures = tuple(
        {"partition": 4 + i, "phase": "tune", "field": "change", "reason": reason}
        for i, reason in enumerate(reasons)
    )
    return make_run(failures=failures)


@pytest.fixture
def empty_run(make_run: Folder) -> Path:
    """A run that completed no round: whatever could be measured is null."""
    folder = make_run(arms=("pruned",))
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    summary = dict.fromkeys(summary) | {"task": "shakespeare", "rounds_completed": 0}
    summary |= {"quality": {"dense_at_pruning": None, "final": None}, "layers": []}
    row = dict.fromkeys(row_of("pruned", 1, "perplexity"))
    row |= {"arm": "pruned", "round": 1, "phase": "warmup", "cohort": [], "failures": []}
    (folder / "rounds.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    (folder / "timings.jsonl").write_text("", "utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    return folder
