"""Rows -> TensorBoard events: `tensorboard --logdir runs/NAME/tensorboard` compares the arms."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.config import RunConfig
from fedprune.records.arms import PRUNED
from fedprune.report.callback import Callback
from fedprune.server.rows import Row

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STEP = "round"


class Board(Callback):
    """The events of a run, written as its rows come: one folder of events per arm.

    Every numeric column is a scalar under its own name (loss, the metric, sparsity, bytes_up,
    agreement, ...). At the end each arm that was measured on the test split gets scalars
    ``test/NAME`` at its last round, and the configuration as hyperparameters beside them. What an
    earlier run left in the folder is replaced, so a resumed run has each step once.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.writers: dict[str, SummaryWriter] = {}
        self.last: dict[str, int] = {}
        self.options: dict[str, Any] = {}

    def started(self, config: RunConfig, folder: Path | None, rows: Sequence[Row]) -> None:
        """Clear the folder and write the rows that a resumed run has already."""
        self.options = config.model_dump(mode="json", exclude_none=True)
        self.open(folder, rows)

    def open(self, folder: Path | None, rows: Sequence[Row]) -> None:
        """Clear ``folder/tensorboard`` and write rows there; None writes nothing, now or later."""
        self.folder, self.writers, self.last = folder, {}, {}
        if folder is not None:
            for stale in (folder / "tensorboard").glob("*/events.out.tfevents.*"):
                stale.unlink()
        for row in rows:
            self.row(row)

    def row(self, row: Row) -> None:
        """Write one row, where TensorBoard reads it at once."""
        if self.folder is None:
            return
        arm = row["arm"]
        if arm not in self.writers:
            # It takes a second to import, for which the workers, who import this, need not wait.
            from torch.utils.tensorboard import SummaryWriter

            directory = self.folder / "tensorboard" / re.sub(r"[^\w-]", "_", arm)
            self.writers[arm] = SummaryWriter(str(directory))
        self.last[arm] = row[STEP]
        for name, value in scalars(row).items():
            self.writers[arm].add_scalar(name, value, row[STEP])
        self.writers[arm].flush()

    def ended(self, summary: Mapping[str, Any] | None) -> None:
        """Write what the test split says, where the run came to its end, and close the files."""
        for arm, writer in self.writers.items():
            tests = tests_of(summary, arm)
            for name, value in tests.items():
                writer.add_scalar(name, value, self.last[arm])
            if tests:
                _with_options(writer, self.options, tests)
            writer.close()
        self.writers = {}


def _with_options(
    writer: SummaryWriter, options: Mapping[str, Any], tests: Mapping[str, float]
) -> None:
    """The options of a run for the tab HPARAMS, in the file of the arm's other events."""
    from torch.utils.tensorboard.summary import hparams

    told = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in options.items()}
    for part in hparams(told, dict(tests)):
        writer._get_file_writer().add_summary(part)  # as add_hparams, which opens another file


def tests_of(summary: Mapping[str, Any] | None, arm: str) -> dict[str, float]:
    """What the test split says of an arm's model, as ``test/NAME``; empty where nobody asked it."""
    quality = (summary or {}).get("quality") or {}
    found = scalars(quality.get("final" if arm == PRUNED else arm) or {})
    return {f"test/{name}": value for name, value in found.items() if name != "count"}


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The columns of a row that are finite numbers, without the round itself.

    What else the task measures lies in a column of its own and is a scalar each.
    """
    return {
        name: float(value)
        for name, value in {**row, **(row.get("measures") or {})}.items()
        if name != STEP
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }
