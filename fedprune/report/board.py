"""Rows -> TensorBoard events: `tensorboard --logdir runs/NAME/tensorboard` compares the arms."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fedprune.report.reading import arms
from fedprune.server.rows import Row

STEP = "round"


def write_events(folder: Path, rows: Sequence[Row]) -> None:
    """Write one run of events per arm, from the rows alone.

    Every numeric column is a scalar under its own name (loss, the metric, sparsity, bytes_up,
    agreement, ...). What an earlier call left is replaced, so a resumed run has each step once.

    Args:
        folder: the run's folder; events go to tensorboard/ARM/ in it.
        rows: rows of rounds.jsonl.
    """
    for stale in (folder / "tensorboard").glob("*/events.out.tfevents.*"):
        stale.unlink()
    for arm in arms(rows):
        directory = folder / "tensorboard" / re.sub(r"[^\w-]", "_", arm)
        with SummaryWriter(str(directory)) as writer:
            for row in (row for row in rows if row["arm"] == arm):
                for name, value in scalars(row).items():
                    writer.add_scalar(name, value, row[STEP])


def scalars(row: Row) -> dict[str, float]:
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
