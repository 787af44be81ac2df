"""``fedprune devices status``: what came of a run, by what is in its folder."""

from __future__ import annotations

import shlex
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedprune.options.refusal import ConfigError, counted
from fedprune.options.values import for_flower
from fedprune.records.arms import PRUNED
from fedprune.records.folder import CONFIG_NAME, ROWS_NAME, check_resumable, read_rows
from fedprune.report.closing import came_short
from fedprune.runtime.connection import CONNECTION
from fedprune.runtime.ending import FAILED
from fedprune.runtime.sums import check_sums, summary_in

_MOST = 10  # Failures that are named, the most frequent


def status_of(folder: Path) -> int:
    """Say what came of a run; 0: it ended as asked, 1: it did not, or not yet.

    Raises:
        ConfigError: the folder is no run's.
        ValueError: a file of it is damaged; it is named.
    """
    if not (folder / CONFIG_NAME).is_file():
        allowed = "the folder of a run, as its line `results` says"
        raise ConfigError(f"folder={str(folder)!r}: no {CONFIG_NAME} there; allowed: {allowed}")
    given = tomllib.loads((folder / CONFIG_NAME).read_text("utf-8"))
    config = {**given, **given.get("followed", {})}
    check_sums(folder)
    rows, summary = read_rows(folder / ROWS_NAME), summary_in(folder)
    own = [row for row in rows if row["arm"] == PRUNED]
    void = sum(row["train_loss"] is None for row in own)
    print(f"run         {folder.resolve()}")
    print(f"rounds      {len(own)} of {config['rounds']}, {void} of them void")
    for text in _failures(rows):
        print(f"failed      {text}")
    print(f"outcome     {_outcome(folder, summary, void)}")
    pruned = bool(summary.get("reached"))
    if pruned and not came_short(summary):
        return 0
    if summary and ("failed" in summary or not pruned):
        return FAILED
    check_resumable(folder)
    command = ["flwr", "run", ".", CONNECTION, "--stream", "--run-config"]
    print("go on       " + shlex.join([*command, f"resume={for_flower(str(folder.resolve()))}"]))
    return FAILED


def _failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    every = Counter(
        (f["partition"], f["phase"], f["reason"]) for row in rows for f in row["failures"]
    )
    told = [
        f"client {p}, phase {phase}, {counted(n, 'time')}: {reason}"
        for (p, phase, reason), n in every.most_common(_MOST)
    ]
    return told + [f"and {len(every) - _MOST} more"] * (len(every) > _MOST)


def _ended(summary: dict[str, Any], void: int) -> str:
    why = came_short(summary)
    if summary.get("reached"):
        pruned = f"ended as asked, sparsity {summary['sparsity']:.4f}"
        return f"{pruned}; but {why}" if why else pruned
    void_why = f"{counted(void, 'round')} void" if void else "it failed"
    return f"ended before it was pruned as asked: {summary.get('short_why') or void_why}"


def _outcome(folder: Path, summary: dict[str, Any], void: int) -> str:
    if summary:
        return _ended(summary, void)
    last = max(path.stat().st_mtime for path in folder.iterdir())
    return f"under way, or interrupted: its files are {max(0.0, time.time() - last):.0f} s old"
