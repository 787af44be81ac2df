"""Rows in one file, as they were written: csv, tsv, json, jsonl, parquet, txt, conll.

Nothing is guessed about a cell. What stands in a csv, tsv or txt file is text; in json a number is
the text of its digits (0.10 is not 0.1); parquet has types, and texts are made from them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedprune.tasks.columns import Columns, NotRows, check_cells
from fedprune.tasks.encodings import opened_text
from fedprune.tasks.json_rows import read_json_rows
from fedprune.tasks.separated import read_csv, read_tsv
from fedprune.tasks.unpacked import check_claim


def read_txt(path: Path, encoding: str | None) -> Columns:
    """A row a line, in one column, "text"."""
    with opened_text(path, encoding) as file:
        return {"text": [line.rstrip("\r\n") for line in file]}


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
