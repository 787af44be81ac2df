"""Rows of json: objects one after another, or in lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedprune.tasks.columns import CELL, Columns, NotRows, check_cells
from fedprune.tasks.encodings import opened_text
from fedprune.tasks.unpacked import most_of


def read_json_rows(path: Path, encoding: str | None) -> Columns:
    """Objects one after another, or in lists; what one lacks is None."""
    with opened_text(path, encoding) as file:
        text = file.read()
    columns: Columns = {}
    most = most_of(path) // CELL
    for done, row in enumerate(_values(text, path.name)):
        if not isinstance(row, dict):
            raise NotRows(
                f"{path.name}, row {done + 1} is {_kind(row)}; allowed: objects, as "
                '{"text": "..."}, one a line or in a list'
            )
        if (done + 1) * (len(columns) + len(row)) > most:
            check_cells(path, done + 1, len(columns | row))
        for name, cell in row.items():
            if name not in columns:
                columns[name] = [None] * done
            columns[name].append(cell)
        if len(row) < len(columns):
            for cells in columns.values():
                cells.extend([None] * (done + 1 - len(cells)))
    if r"\ud" in text.lower():
        _whole_characters(columns, path.name)
    return columns


def _kind(value: Any) -> str:
    kinds = {str: "a text or a number", bool: "true or false", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


def _values(text: str, name: str) -> Iterator[Any]:
    """The values in a text of json, of a list each by itself; numbers as they are written.

    Raises:
        NotRows: it is not json, or an object has a name twice.
    """
    decoder = json.JSONDecoder(
        parse_float=str, parse_int=str, parse_constant=str, object_pairs_hook=_each_once
    )
    blank, at = re.compile(r"\s*"), 0
    while True:
        at = blank.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        if at == len(text):
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            line, begun = error.lineno, text.count("\n", 0, at) + 1
            within = f" (of what begins in line {begun})" if begun < line else ""
            reason = f"not json: {error.msg}, column {error.colno}{within}"
        except (ValueError, RecursionError) as error:
            line, reason = text.count("\n", 0, at) + 1, str(error)
        else:
            yield from value if isinstance(value, list) else [value]
            continue
        raise NotRows(f"{name}, line {line}: {reason}; allowed: an object a line, or a list")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is twice in one object")
    return found


def _whole_characters(columns: Columns, name: str) -> None:
    """Refuse texts with half of a surrogate pair: no tokenizer reads them.

    Raises:
        NotRows: there is one.
    """
    for column, cells in columns.items():
        for row, cell in enumerate(cells):
            if isinstance(cell, str) and any("\ud800" <= c <= "\udfff" for c in cell):
                raise NotRows(
                    f"{name}, row {row + 1}: {column!r} holds half of a character (a surrogate); "
                    r"allowed: both halves, as \ud83d\ude00"
                )
