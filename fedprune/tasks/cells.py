"""What a cell of a user's rows means: a text, a number, a list of texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedprune.tasks.unpacked import check_claim

ReadCell = Callable[[Any], Any]
"""What a cell means to a task.

Raises:
    ValueError: it is not that; what it is; allowed: what would be.
"""


def cell_text(cell: Any) -> str:
    """The text of a cell; of nothing (None) the empty one, of json's true and false their names.

    Raises:
        ValueError: it is a list or an object.
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, (list, dict)):
        raise ValueError(f"{_short(cell)} is not a text; allowed: texts and numbers")
    return "" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def as_number(cell: Any) -> float:
    """The number that a cell is the text of.

    Raises:
        ValueError: it is not a number, or not a finite one.
    """
    text = cell_text(cell).strip()
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"{_short(text)} is not a number; allowed: as 3, -0.5, 1e-3")
    return float(text)


def as_list(cell: Any) -> list[str]:
    """The texts in a list of json or parquet; of a text that is such a list, as ["a", "b"], too.

    Raises:
        ValueError: it is not a list, or it holds other than texts and numbers.
    """
    if isinstance(cell, str):
        with suppress(ValueError, RecursionError):
            cell = json.loads(cell, parse_float=str, parse_int=str, parse_constant=str)
    if not isinstance(cell, list):
        raise ValueError(f'{_short(cell)} is not a list; allowed: as ["a", "b"]')
    return [cell_text(one) for one in cell]


def _short(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else f"{text[:37]}..."


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
