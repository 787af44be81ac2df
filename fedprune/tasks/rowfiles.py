"""Rows in one file, as they were written: csv, tsv, json, jsonl, parquet, txt.

Nothing is guessed about a cell. What stands in a csv, tsv or txt file is text; in json a number is
the text of its digits (0.10 is not 0.1); parquet has types, and texts are made from them.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from fedprune.tasks.unpacked import check_claim, most_of

Columns = dict[str, list[Any]]
"""Columns by name, all of one length. A cell is a text, None (nothing), or of json and parquet
also True, False, a list or a mapping."""


class NotRows(ValueError):
    """A file that cannot be read: what was seen; allowed: what is."""


_MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What a file may begin with (a byte order mark), and the encoding that this says."""

_ENCODINGS = "--encoding with the file's own, as latin-1, cp1252, utf-16-le"


def encoding_of(path: Path, asked: str | None) -> str:
    """The encoding of a file: what the mark at its beginning says, else what is asked, else UTF-8.

    Raises:
        NotRows: the two contradict each other, or UTF-16 is asked for and the file is not that.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), "")
    name = codecs.lookup(asked or marked or "utf-8").name
    if marked and not name.startswith(codecs.lookup(marked).name.removesuffix("-sig")):
        raise NotRows(f"{path.name} begins with the mark of {marked}; allowed: no --encoding")
    wide = name.startswith(("utf-16", "utf-32"))
    if name in ("utf-16", "utf-32") and not marked:
        raise NotRows(f"{path.name} has no mark of {name}; allowed: {name}-le, {name}-be, others")
    if not wide and b"\0" in start:
        raise NotRows(f"{path.name} has bytes of zero and is not {name}; allowed: {_ENCODINGS}")
    return marked or name


@contextmanager
def _opened(path: Path, asked: str | None) -> Iterator[TextIO]:
    """A file of text, with its line ends as they were written.

    Raises:
        NotRows: it is not in its encoding.
    """
    encoding = encoding_of(path, asked)
    try:
        with path.open(encoding=encoding, newline="") as file:
            yield file
    except UnicodeError as error:
        where = _where(path, encoding, error)
        raise NotRows(f"{path.name} is not {encoding}: {where}; allowed: {_ENCODINGS}") from None


def _where(path: Path, encoding: str, error: UnicodeError) -> str:
    """The byte and the line that cannot be read: of the whole file, not of the piece at hand."""
    try:
        path.read_bytes().decode(encoding)
    except UnicodeDecodeError as whole:
        line = whole.object[: whole.start].count(b"\n") + 1
        return f"byte 0x{whole.object[whole.start]:02x} in line {line}, {whole.reason}"
    except UnicodeError:
        pass
    return str(error)


def read_txt(path: Path, encoding: str | None) -> Columns:
    """A row a line, in one column, "text"."""
    with _opened(path, encoding) as file:
        return {"text": [line.rstrip("\r\n") for line in file]}


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
    with _opened(path, encoding) as file, _cells_of_any_length():
        separator, spaced = _style(list(islice(file, _LOOKED_AT)), separators)
        file.seek(0)
        rows = csv.reader(file, delimiter=separator, skipinitialspace=spaced, strict=True)
        checked = _rows(rows, path.name, separator)
        names = [name.strip() for name in next(checked, [])]
        columns: list[list[str]] = [[] for _ in names]
        while chunk := list(islice(checked, _AT_A_TIME)):
            for column, cells in zip(columns, zip(*chunk, strict=True), strict=True):
                column.extend(_shared(cells))
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
    """The heading and the rows as long as it.

    Raises:
        NotRows: a row has more or fewer cells, or its quotes do not end.
    """
    heading: list[str] = []
    before = 0
    try:
        for row in rows:
            if row and len(row) == len(heading or row):
                heading = heading or row
                if separator == "\t" and rows.line_num > before + 1:
                    _not_merged(row, f"{name}, line {before + 1}")
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


def _not_merged(row: Sequence[str], where: str) -> None:
    """Refuse a cell with a tab and a line's end in it: two rows, and a quote that only one began.

    Raises:
        NotRows: there is one.
    """
    if any("\t" in cell and "\n" in cell for cell in row):
        raise NotRows(
            f"{where}: a quote is not closed within its cell; allowed: quotes around whole cells, "
            'and "" for a quote within'
        )


def _shared(cells: Sequence[str]) -> Iterable[str]:
    """The cells; equal ones as one object, where many are: a million rows have few labels."""
    return map(sys.intern, cells) if 2 * len(set(cells)) < len(cells) else cells


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Within the block a cell may be a whole book; the limit is the interpreter's, not a file's."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_json(path: Path, encoding: str | None) -> Columns:
    """Objects one after another, or in lists; what one lacks is None."""
    with _opened(path, encoding) as file:
        text = file.read()
    columns: Columns = {}
    most = most_of(path) // _CELL
    for done, row in enumerate(_values(text, path.name)):
        if not isinstance(row, dict):
            raise NotRows(
                f"{path.name}, row {done + 1} is {_kind(row)}; allowed: objects, as "
                '{"text": "..."}, one a line or in a list'
            )
        if (done + 1) * (len(columns) + len(row)) > most:
            _check_cells(path, done + 1, len(columns | row))
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


_CELL = 8
"""Bytes of a list for each of its values."""


def _check_cells(path: Path, rows: int, columns: int) -> None:
    """Refuse more cells than a file of its size can have."""
    try:
        check_claim(path, _CELL * rows * columns)
    except ValueError as error:
        raise NotRows(f"{error} ({rows} rows of {columns} columns)") from None


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
            line, reason = error.lineno, f"not json: {error.msg}, column {error.colno}"
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


def read_parquet(path: Path, encoding: str | None) -> Columns:
    """Cells as texts, but for lists and mappings; whole numbers have no point, 1.0 is 1."""
    del encoding  # the format has its own
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            _check_cells(path, file.metadata.num_rows, file.metadata.num_columns)
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


def _texts(column: Any) -> list[Any]:
    from pyarrow import ArrowException, string, types

    kind = column.type
    if types.is_nested(kind):
        cells: list[Any] = column.to_pylist()
        return cells
    if types.is_temporal(kind) and not types.is_date(kind):
        return [None if cell is None else str(cell) for cell in column.to_pylist()]
    try:
        texts: list[Any] = column.cast(string()).to_pylist()
    except ArrowException:
        return [None if cell is None else str(cell) for cell in column.to_pylist()]
    return texts


def read_conll(path: Path, encoding: str | None) -> Columns:
    """A word and its tag a line, an empty line between sentences.

    They are the first and the last of what white space parts. Lines of ``-DOCSTART-`` are between
    documents; none is a comment, a word may be "#".

    Returns:
        tokens and tags, a list a sentence.
    """
    tokens: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    with _opened(path, encoding) as file:
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
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": read_parquet,
    ".txt": read_txt,
    ".conll": read_conll,
}
"""Suffix to what reads such a file in an encoding (None: what its mark says, or UTF-8)."""
