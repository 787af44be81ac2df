"""A user's own rows: a file, or a folder of files of one kind, as columns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedprune.options.refusal import counted
from fedprune.tasks.cells import Columns, NotRows, ReadCell, cell_text
from fedprune.tasks.options import Data
from fedprune.tasks.rowfiles import READERS

_Table = Mapping[str, Sequence[Any]]
"""Columns by name, all of one length; see `fedprune.tasks.cells.Columns` for what is in them."""

_SUFFIXES = ", ".join(READERS)


def read_table(data: str, encoding: str | None = None) -> _Table:
    """The rows of a file, or of all files of one kind in a folder, in the order of their names.

    Cells are as they were written: 007 and 7 are two texts. A txt file has a row a line and one
    column, "text". Read once in a process as long as the files do not change.

    Args:
        data: the file or the folder.
        encoding: of files of text that have no byte order mark; None: UTF-8.

    Raises:
        FileNotFoundError: there is no such file, or none that can be read.
        ValueError: there are several kinds of files, one is not what its name says, or no rows.
    """
    stamp = tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in _files(data))
    return _read(data, stamp, encoding)


def _files(data: str) -> list[Path]:
    path = Path(data)
    if not data or not path.exists():
        raise FileNotFoundError(
            f"data={data!r}: no such file or folder; allowed: one of {_SUFFIXES}, or a folder of it"
        )
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    shown = [f for f in inside if f == path or not f.name.startswith(".")]
    files = [f for f in shown if f.suffix.lower() in READERS and f.is_file()]
    if not files:
        raise FileNotFoundError(
            f"data={data!r}: no file that can be read; allowed: names that end in {_SUFFIXES}"
        )
    kinds = sorted({f.suffix.lower() for f in files})
    if len(kinds) > 1:
        raise ValueError(
            f"data={data!r}: files of several kinds ({', '.join(kinds)}); allowed: one kind"
        )
    return files


@functools.lru_cache(maxsize=4)
def _read(data: str, stamp: tuple[tuple[str, int, int], ...], encoding: str | None) -> _Table:
    try:
        pieces = [(path, _columns(path, encoding)) for path in (Path(n) for n, _, _ in stamp)]
    except NotRows as error:
        raise ValueError(f"data={data!r}: {error}") from None
    except OSError as error:
        raise ValueError(f"data={data!r}: {error}; allowed: files that can be read") from None
    filled = [(path, columns) for path, columns in pieces if rows_in(columns)]
    if not filled:
        raise ValueError(f"data={data!r}: no rows; allowed: at least one")
    first, table = filled[0]
    for path, columns in filled[1:]:
        if columns.keys() != table.keys():
            odd = ", ".join(sorted(columns.keys() ^ table.keys()))[:100]
            raise ValueError(
                f"data={data!r}: {path.name} and {first.name} differ in columns ({odd}); "
                "allowed: the same in every file, in any order"
            )
        for name, cells in columns.items():
            table[name] += cells
    return table


def _columns(path: Path, encoding: str | None) -> dict[str, list[Any]]:
    return READERS[path.suffix.lower()](path, encoding) if path.stat().st_size else {}


def rows_in(columns: _Table) -> int:
    """How many rows there are."""
    return len(next(iter(columns.values()), ()))


def column(table: _Table, option: str, name: str, read: ReadCell = cell_text) -> list[Any]:
    """A column, as texts or what else `read` makes of a cell.

    Raises:
        ValueError: there is no such column, with those there are; or a cell is not what is
            wanted, with its row.
    """
    return _cells(option, name, _named(table, option, name), read, None)


def _named(table: _Table, option: str, name: str) -> Sequence[Any]:
    if name not in table:
        shown = [n if n == n.strip() else repr(n) for n in table]
        raise ValueError(
            f"{option}={name!r}: no such column in the data; allowed: {', '.join(shown)[:300]}"
        )
    return table[name]


def _cells(
    option: str, name: str, cells: Sequence[Any], read: ReadCell, rows: Sequence[int] | None
) -> list[Any]:
    at = range(len(cells)) if rows is None else rows
    found: list[Any] = []
    try:
        for i in at:
            found.append(read(cells[i]))
    except ValueError as error:
        raise ValueError(f"{option}={name!r}: row {at[len(found)] + 1}: {error}") from None
    return found


def rows_with_text(
    config: Data,
    *more: str,
    read: Mapping[str, ReadCell] | None = None,
    blank: Collection[str] = (),
) -> Columns:
    """The columns that a task needs, by what they are for; rows with an empty text are left out.

    Args:
        config: resolved configuration.
        more: "label" or "target", where the task needs them.
        read: what a cell of these, or of "text", means where it is not a text: `as_number`,
            `as_list`.
        blank: those that may be empty.

    Raises:
        ValueError: a column is not there, no row has a text, or a row lacks something else.
    """
    named = {
        "text": config.text_column,
        "label": config.label_column,
        "target": config.target_column,
        "client": config.client_column,
    }
    needed = [*more, *(["client"] if config.split == "natural" else [])]
    if config.split == "natural" and not config.client_column:
        raise ValueError(
            "split='natural': no column says whose row it is; allowed: --client-column COLUMN"
        )
    table = read_table(config.data, config.encoding)
    reads = read or {}
    texts = column(table, "text-column", named["text"] or "text", reads.get("text", cell_text))
    rows = [i for i, text in enumerate(texts) if (text.strip() if isinstance(text, str) else text)]
    if not rows:
        raise ValueError(f"data={config.data!r}: no row has a text; allowed: at least one")
    out: Columns = {"text": [texts[i] for i in rows]}
    for kind in needed:
        option, name = f"{kind}-column", named[kind] or kind
        cells = _named(table, option, name)
        empty = sum(cells[i] is None or not str(cells[i]).strip() for i in rows)
        if empty and kind not in blank:
            raise ValueError(
                f"{option}={name!r}: {empty} of {counted(len(rows), 'row')} "
                f"{'has' if empty == 1 else 'have'} none; "
                "allowed: a value in every row"
            )
        out[kind] = _cells(option, name, cells, reads.get(kind, cell_text), rows)
    return out


_Said = TypeVar("_Said")


def cached_by_config(ask: Callable[[Data], _Said]) -> Callable[[Data], _Said]:
    """The same function, which keeps what it said of the newest configurations.

    Of these very objects, not of equal ones: a run has one, and thousands of clients that ask for
    the names of classes must not read the rows each.
    """
    known: list[tuple[Data, _Said]] = []

    @functools.wraps(ask)
    def answer(config: Data) -> _Said:
        for asked, said in known:
            if asked is config:
                return said
        said = ask(config)
        known[:] = [(config, said), *known[:3]]
        return said

    return answer
