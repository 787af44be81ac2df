"""What several runs came to, each as a record: a row of ``results.csv``; and what they lack."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprune.methods.catalog import FOLLOWING
from fedprune.options.refusal import ConfigError
from fedprune.records.folder import CONFIG_NAME
from fedprune.report.reading import Run, arms, number, read_run
from fedprune.runtime.files import write_atomically
from fedprune.study.cells import GridCell
from fedprune.study.design import SEED
from fedprune.study.playing import cell_folder, is_there, last_line, log_of

RESULTS_NAME = "results.csv"


@dataclass(frozen=True)
class StudyOutcome:
    """A run of a study."""

    name: str  # of its folder
    labels: Mapping[str, str]  # what it is called in each factor
    folder: Path  # where it is
    run: Run | None  # what is in it; None where it has no result
    reason: str = ""  # why it has none, or what of it was not done; "" where all was
    digest: str = ""  # of its cell, "" where it is of no study

    @property
    def metric(self) -> str:
        """The task's metric; "" without a result."""
        return "" if self.run is None else self.run.metric

    @property
    def counts(self) -> bool:
        """Whether its result is of what was asked, pruned as far: means and tests are of such."""
        said = {} if self.run is None else self.run.summary
        return bool(said) and "failed" not in said and bool(said.get("reached", True))

    def test(self, measure: str, arm: str = "final") -> float:
        """A measure on the test split; NaN where it was not measured."""
        if self.run is None:
            return number(None)
        return number(((self.run.summary.get("quality") or {}).get(arm) or {}).get(measure))

    def said(self, key: str) -> Any:
        """What its summary says under a key; None without one."""
        return None if self.run is None else self.run.summary.get(key)


def outcome_of(cell: GridCell, out: Path) -> StudyOutcome:
    """What a cell of a study came to."""
    folder = cell_folder(cell, out)
    if not is_there(folder):
        log = log_of(cell, out)
        reason = last_line(log) if log.is_file() else "not played yet"
        return StudyOutcome(cell.name, cell.labels, folder, None, reason, cell.digest)
    try:
        run = read_run(folder)
    except ValueError as error:  # two processes wrote there at once, or somebody else did
        return StudyOutcome(cell.name, cell.labels, folder, None, str(error), cell.digest)
    return StudyOutcome(cell.name, cell.labels, folder, run, _undone(run), cell.digest)


def outcome_in(folder: Path, labels: Mapping[str, str]) -> StudyOutcome:
    """What the run in a folder came to.

    Raises:
        ConfigError: it is no finished run, or a file of it is not as it was written.
    """
    try:
        if not (folder / CONFIG_NAME).is_file():
            raise ValueError("no run is there")
        run = read_run(folder)
        if not run.summary:
            raise ValueError("the run has not ended")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(folder)!r}: {error}; allowed: folders of finished runs") from None
    return StudyOutcome(folder.name, labels, folder, run, _undone(run))


def _undone(run: Run) -> str:
    """What of a run was not done, in its own words."""
    privacy = run.summary.get("privacy") or {}
    why = run.summary.get("failed") or privacy.get("stopped")
    if why or run.summary.get("reached", True):
        return str(why or "")
    return "not pruned as asked: too few clients answered"


SUMMED = (
    *("sparsity", "sparsity_of_all", "parameters", "parameters_left", "kept_parameters"),
    *("flops_dense", "flops_kept", "bytes_up", "bytes_down", "bytes_dense", "bytes_evaluation"),
    *("rounds_completed", "failures", "seconds", "mask_digest", "weights_digest"),
)
"""Keys of a summary that are columns under their own names."""


_OF_DEVICES = ("seconds", "joules")  # What simulated devices took


def record_of(outcome: StudyOutcome) -> dict[str, Any]:
    """A run as a row: labels, quality by split, sizes, bytes, digests; empty where unknown.

    What a run came to under the name of a factor, such as its sparsity, has ``_reached`` behind it.
    """
    said = {"status": _status(outcome), "reason": outcome.reason}
    said |= {} if outcome.run is None else _figures_of(outcome.run)
    said |= {"config_digest": outcome.digest, "folder": str(outcome.folder)}
    own = {f"{k}_reached" if k in outcome.labels else k: value for k, value in said.items()}
    return {"cell": outcome.name, **outcome.labels, **own}


def _figures_of(run: Run) -> dict[str, Any]:
    out: dict[str, Any] = {"task": run.summary["task"], "metric": run.metric}
    out |= {f"validation_{measure}": value for measure, value in _last_row(run).items()}
    for arm, found in run.summary["quality"].items():
        for measure, value in (found or {}).items():
            out[f"test_{measure}" if arm == "final" else f"{arm}_test_{measure}"] = value
    out |= {key: run.summary.get(key) for key in SUMMED}
    out |= {f"devices_{k}": (run.summary.get("devices") or {}).get(k) for k in _OF_DEVICES}
    out |= {f"bytes_on_disk_{k}": v for k, v in (run.summary.get("bytes_on_disk") or {}).items()}
    return out | {"epsilon": (run.summary.get("privacy") or {}).get("total")}


def _status(outcome: StudyOutcome) -> str:
    if outcome.run is None:
        return "not played" if outcome.reason == "not played yet" else "failed"
    return "not reached" if outcome.reason else "done"


def _last_row(run: Run) -> dict[str, Any]:
    """The loss and the metric on validation after the last round that was measured."""
    rows = [row for row in run.rows if row["arm"] == run.main and row.get("loss") is not None]
    return {m: rows[-1].get(m) for m in ("loss", run.metric)} if rows else {}


def write_outcomes(out: Path, outcomes: Sequence[StudyOutcome]) -> Path:
    """Write ``results.csv``: a row for each run, a column for whatever one of them says."""
    records = [record_of(outcome) for outcome in outcomes]
    columns = dict.fromkeys(key for record in records for key in record)
    for key in ("config_digest", "folder"):  # the longest, so the last
        columns[key] = columns.pop(key, None)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(out / RESULTS_NAME, text.getvalue().encode())
    return out / RESULTS_NAME


_SEEDS = 3  # Fewer give a spread that says little


def lacking(outcomes: Sequence[StudyOutcome]) -> list[str]:
    """Of what Blalock et al. 2020 (arXiv 2003.03033, ShrinkBench) ask for, what is not there.

    Several amounts of pruning, repetitions, and a random mask and magnitude as baselines. That
    runs of a seed begin with the same weights, and what they send and compute, is always so.
    """
    runs = [o.run for o in outcomes if o.run is not None]
    pruned = {run.summary.get("sparsity_asked") for run in runs} - {0.0, None}
    plain = {run.config.get("score") for run in runs if run.config.get("method") in FOLLOWING}
    beside = plain.union(*(arms(run.rows) for run in runs))
    found = {
        "several sparsities": len(pruned) < 2,
        "three seeds": len({o.labels.get(SEED) for o in outcomes}) < _SEEDS,
        "a random mask": "random" not in beside,
        "magnitude": "magnitude" not in beside,
    }
    return [what for what, lacks in found.items() if lacks and pruned]
