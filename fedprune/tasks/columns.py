"""Rows of a file as columns, and what is said of a file that holds none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedprune.tasks.unpacked import check_claim

Columns = dict[str, list[Any]]
"""Columns by name, all of one length. A cell is a text, None (nothing), or of json and parquet
also True, False, a list or a mapping."""


class NotRows(ValueError):
    """A file that cannot be read: what was seen; allowed: what is."""


CELL = 8
"""Bytes of a list for each of its values."""


def check_cells(path: Path, rows: int, columns: int) -> None:
    """Refuse more cells than a file of its size can have."""
    try:
        check_claim(path, CELL * rows * columns)
    except ValueError as error:
        raise NotRows(f"{error} ({rows} rows of {columns} columns)") from None
