"""Rows -> Weights & Biases, MLflow or a CSV file, through their own libraries: ``--track``.

One run of the tracker per run of fedprune. The pruned arm's columns have their own names (``loss``,
``sparsity``, ...), those of another arm begin with its name (``dense/loss``), and what the test
split says is ``test/loss`` or ``dense/test/loss``. Where a run is resumed, the trackers get the
rows of earlier rounds first: W&B and MLflow as a new run of theirs, the CSV file anew.
"""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedprune.config import RunConfig
from fedprune.config.options import TRACKERS, Results
from fedprune.options.refusal import ConfigError, refuse
from fedprune.records.arms import PRUNED
from fedprune.report.board import STEP, scalars, tests_of
from fedprune.report.callback import Callback
from fedprune.server.rows import Row

PROJECT = "fedprune"  # Project of W&B, unless WANDB_PROJECT names one, and experiment of MLflow

CSV_NAME = "rounds.csv"
_PARAMS = 100  # As many options as MLflow takes in one call


class Tracker(Callback):
    """What the trackers share: names of metrics, and a resumed run's rows told again."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}  # the last round of each arm so far
        self.begun = False  # whether the library has opened its run, which is then to be closed

    def started(self, config: RunConfig, folder: Path | None, rows: Sequence[Row]) -> None:
        """Begin a run of the tracker.

        Raises:
            ConfigError: the run has no folder, or the library refuses; one line.
        """
        if folder is None:
            refuse("track", config.track, "the run keeps no folder", "a folder, or no tracker")
        self.last, self.begun = {}, False
        told = config.model_dump(mode="json", exclude_none=True)
        try:
            self.begin(folder.resolve(), told)
        except Exception as error:  # whatever the library raises, it is before round one
            line = " ".join(str(error).split()) or type(error).__name__
            allowed = "what the library asks for, or no tracker"
            raise ConfigError(f"track={config.track!r}: {line}; allowed: {allowed}") from error
        self.begun = True
        for row in rows:
            self.row(row)

    def row(self, row: Row) -> None:
        """Log the finite numbers of a row at its round."""
        self.last[row["arm"]] = row[STEP]
        self.log(_under(row["arm"], scalars(row)), row[STEP])

    def ended(self, summary: Mapping[str, Any] | None) -> None:
        """Log what the test split says, where the run came to its end, and close."""
        for arm, round_ in self.last.items():
            if tests := tests_of(summary, arm):
                self.log(_under(arm, tests), round_)
        if self.begun:
            self.end(summary is not None)

    def begin(self, folder: Path, options: Mapping[str, Any]) -> None:
        """Open the tracker's run for a folder (absolute) and the options of the configuration."""

    def log(self, values: Mapping[str, float], round_: int) -> None:
        """Log values of a round."""

    def end(self, completed: bool) -> None:
        """Close the tracker's run."""


def _under(arm: str, values: Mapping[str, float]) -> dict[str, float]:
    return {name if arm == PRUNED else f"{arm}/{name}": value for name, value in values.items()}


class WandbTracker(Tracker):
    """A run of Weights & Biases in ``FOLDER/wandb``; ``WANDB_MODE=offline`` needs no account."""

    def begin(self, folder: Path, options: Mapping[str, Any]) -> None:
        """Open a run named as the folder."""
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            dir=str(folder),
            config=dict(options),
            reinit="create_new",
            settings=wandb.Settings(console="off"),  # stdout and stderr stay as they are
        )
        self.run.define_metric("*", step_metric=STEP)

    def log(self, values: Mapping[str, float], round_: int) -> None:
        """Log values beside their round, which is the axis of every chart."""
        self.run.log({**values, STEP: round_})

    def end(self, completed: bool) -> None:
        """Finish the run, as failed where an error ended it."""
        self.run.finish(exit_code=0 if completed else 1)


class MlflowTracker(Tracker):
    """A run of MLflow at MLFLOW_TRACKING_URI, or, where that is not set, in ``FOLDER/mlruns``."""

    def begin(self, folder: Path, options: Mapping[str, Any]) -> None:
        """Open a run named as the folder, with the options as parameters."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if not place:
            # MLflow 3 opens a store of files only where it is told so.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            place = (folder / "mlruns").as_uri()
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient(place)
        known = self.client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self.client.create_experiment(PROJECT)
        self.id = self.client.create_run(experiment, run_name=folder.name).info.run_id
        told = [Param(name, str(value)[:6000]) for name, value in options.items()]
        for first in range(0, len(told), _PARAMS):
            self.client.log_batch(self.id, params=told[first : first + _PARAMS])

    def log(self, values: Mapping[str, float], round_: int) -> None:
        """Log values with their round as the step."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, 0, round_) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def end(self, completed: bool) -> None:
        """End the run, as FAILED where an error ended it."""
        self.client.set_terminated(self.id, "FINISHED" if completed else "FAILED")


class CsvTracker(Tracker):
    """``FOLDER/rounds.csv``: a line for each round, a column for each metric, empty where none."""

    def begin(self, folder: Path, options: Mapping[str, Any]) -> None:
        """Start the file anew."""
        del options
        self.path = folder / CSV_NAME
        self.columns: list[str] = [STEP]
        self.lines: dict[int, dict[str, float]] = {}
        self._write_all()

    def log(self, values: Mapping[str, float], round_: int) -> None:
        """Add values to the line of their round, and write the file."""
        self.lines[round_] = {**self.lines.get(round_, {STEP: round_}), **values}
        self.columns += [name for name in values if name not in self.columns]
        self._write_all()

    def _write_all(self) -> None:
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.lines.values())


_KINDS = {"wandb": WandbTracker, "mlflow": MlflowTracker, "csv": CsvTracker}


def check_trackers(config: Results) -> None:
    """Refuse a tracker whose library is not installed."""
    for name in config.track:
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"track={name!r}: {name} is not installed; allowed: "
                f"pip install 'fedprune[{name}]', or --track csv"
            )


def trackers_of(config: Results) -> list[Callback]:
    """The trackers that a configuration asks for, each once."""
    check_trackers(config)
    return [_KINDS[name]() for name in TRACKERS if name in config.track]
