"""Rows of cells between commas, tabs, semicolons or bars."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from fedprune.tasks.cells import Columns, NotRows
from fedprune.tasks.encodings import opened_text


def read_csv(path: Path, encoding: str | None) -> Columns:
    """Cells between commas; semicolons, tabs or bars, where these are what the rows agree on."""
    return _separated(path, encoding, ",;\t|")


def read_tsv(path: Path, encoding: str | None) -> Columns:
    """Cells between tabs; commas, semicolons or bars, where these are what the rows agree on."""
    return _separated(path, encoding, "\t,;|")


_AT_A_TIME = 10_000
"""Rows that are turned into columns at a time."""


_LOOKED_AT = 200
"""Lines that tell what separates the cells."""


def _separated(path: Path, encoding: str | None, separators: str) -> Columns:
    """Rows of cells under a heading; empty lines are none, columns without a name are left out."""
    with opened_text(path, encoding) as file, _cells_of_any_length():
        separator, spaced = _style(list(islice(file, _LOOKED_AT)), separators)
        file.seek(0)
        rows = csv.reader(file, delimiter=separator, skipinitialspace=spaced, strict=True)
        checked = _rows(rows, path.name, separator)
        names = [name.strip() for name in next(checked, [])]
        columns: list[list[str]] = [[] for _ in names]
        while chunk := list(islice(checked, _AT_A_TIME)):
            for column, cells in zip(columns, zip(*chunk, strict=True), strict=True):
                # Equal ones as one object, where many are: a million rows have few labels.
                many = 2 * len(set(cells)) < len(cells)
                column.extend(map(sys.intern, cells) if many else cells)
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise NotRows(f"{path.name} has two columns {twice[0]!r}; allowed: each name once")
    return {name: cells for name, cells in zip(names, columns, strict=True) if name}


def _style(lines: Sequence[str], separators: str) -> tuple[str, bool]:
    """What separates cells, and whether a space after it is part of the style, not of the cell.

    The first separator that gives every row as many cells as the heading, of two or more; else the
    first one that the heading has.
    """
    found = []
    for separator in separators:
        heading = next((row for row in csv.reader(lines, delimiter=separator) if row), [])
        spaced = len(heading) > 1 and all(name.startswith(" ") for name in heading[1:])
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=spaced)
        widths = [len(row) for row in rows if row]
        # The last row may go on after what was looked at.
        agree = set(widths[:-1] if len(lines) == _LOOKED_AT else widths) == {len(heading)}
        if len(heading) > 1:
            found.append((not agree, separators.index(separator), spaced))
    if not found:
        return separators[0], False
    _, first, spaced = min(found)
    return separators[first], spaced


def _rows(rows: Any, name: str, separator: str) -> Iterator[list[str]]:
    """The heading and the rows as long as it."""
    heading: list[str] = []
    before = 0
    try:
        for row in rows:
            if row and len(row) == len(heading or row):
                heading = heading or row
                merged = separator == "\t" and rows.line_num > before + 1
                # A cell over a line's end with a tab in it: a quote that only one row began.
                if merged and any("\t" in cell and "\n" in cell for cell in row):
                    raise NotRows(
                        f"{name}, line {before + 1}: a quote is not closed within its cell; "
                        'allowed: quotes around whole cells, and "" for a quote within'
                    )
                yield row
            elif any(cell.strip() for cell in row):
                seen = ", ".join(heading)[:100]
                raise NotRows(
                    f"{name}, line {before + 1}: {_count(row, separator)}, the heading has "
                    f"{len(heading)} ({seen}); allowed: as many in every row, and quotes around "
                    f"a cell that holds a separator"
                )
            before = rows.line_num
    except csv.Error as error:
        raise NotRows(
            f"{name}, the row that begins in line {before + 1}: {error}; allowed: quotes around "
            'whole cells, and "" for a quote within'
        ) from None


def _count(row: Sequence[str], separator: str) -> str:
    cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
    return f"{cells} between {_SAID.get(separator, repr(separator))}"


_SAID = {"\t": "tabs"}


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Within the block a cell may be a whole book; the limit is the interpreter's, not a file's."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
