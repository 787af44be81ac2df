"""Rows in one file, as they were written: csv, tsv, json, jsonl, parquet, txt, conll.

Nothing is guessed about a cell. What stands in a csv, tsv or txt file is text; in json a number is
the text of its digits (0.10 is not 0.1); parquet has types, and texts are made from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedprune.tasks.cells import CELL, Columns, NotRows, check_cells
from fedprune.tasks.encodings import opened_text
from fedprune.tasks.separated import read_csv, read_tsv
from fedprune.tasks.unpacked import check_claim, most_of


def read_txt(path: Path, encoding: str | None) -> Columns:
    """A row a line, in one column, "text"."""
    with opened_text(path, encoding) as file:
        return {"text": [line.rstrip("\r\n") for line in file]}


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
    """The values in a text of json, of a list each by itself; numbers as they are written."""
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
    """Refuse texts with half of a surrogate pair: no tokenizer reads them."""
    for column, cells in columns.items():
        for row, cell in enumerate(cells):
            if isinstance(cell, str) and any("\ud800" <= c <= "\udfff" for c in cell):
                raise NotRows(
                    f"{name}, row {row + 1}: {column!r} holds half of a character (a surrogate); "
                    r"allowed: both halves, as \ud83d\ude00"
                )


def read_parquet(path: Path, encoding: str | None) -> Columns:
    """Cells as texts, but for lists and mappings; whole numbers have no point, 1.0 is 1."""
    del encoding  # the format has its own
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            check_cells(path, file.metadata.num_rows, file.metadata.num_columns)
            table = _read_in_parts(path, file)
    except ArrowException as error:
        reason = " ".join(str(error).split())[:150]
        raise NotRows(f"{path.name} is not parquet: {reason}; allowed: a whole file") from None
    names = table.column_names
    if len(set(names)) < len(names):
        raise NotRows(f"{path.name} has a column twice ({names}); allowed: each name once")
    return {name: _texts(table.column(name)) for name in names}


def _read_in_parts(path: Path, file: Any) -> Any:
    """The whole table; no more of it than a file of its size can hold."""
    from pyarrow import Table

    parts, size = list[Any](), 0
    for part in file.iter_batches(batch_size=2**12):
        parts.append(part)
        size += part.nbytes
        try:
            check_claim(path, size)
        except ValueError as error:
            raise NotRows(str(error)) from None
    return Table.from_batches(parts, schema=file.schema_arrow)


def _texts(column: Any) -> Any:
    from pyarrow import ArrowException, string, types

    kind = column.type
    if types.is_nested(kind):
        return column.to_pylist()
    if not types.is_temporal(kind) or types.is_date(kind):
        with suppress(ArrowException):
            return column.cast(string()).to_pylist()
    return [None if cell is None else str(cell) for cell in column.to_pylist()]


def read_conll(path: Path, encoding: str | None) -> Columns:
    """A word and its tag a line, an empty line between sentences.

    They are the first and the last of what white space parts. Lines of ``-DOCSTART-`` are between
    documents; none is a comment, a word may be "#". Tokens and tags come out, a list a sentence.
    """
    tokens: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    with opened_text(path, encoding) as file:
        for n, line in enumerate(file, 1):
            cells = line.split()
            if not cells or cells[0] == "-DOCSTART-":
                for column in (tokens, tags) if tokens[-1] else ():
                    column.append([])
                continue
            if len(cells) < 2:
                raise NotRows(f"{path.name}: line {n} has one word alone; allowed: a word, a tag")
            tokens[-1].append(cells[0])
            tags[-1].append(cells[-1])
    return {"tokens": [row for row in tokens if row], "tags": [row for row in tags if row]}


READERS: dict[str, Callable[[Path, str | None], Columns]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json_rows,
    ".jsonl": read_json_rows,
    ".parquet": read_parquet,
    ".txt": read_txt,
    ".conll": read_conll,
}
"""Suffix to what reads such a file in an encoding (None: what its mark says, or UTF-8)."""
