"""A user's own rows: a file, or a folder of files of one kind, and what a cell of them means."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from fedprune.options.refusal import counted
from fedprune.tasks.owners import Population, owned
from fedprune.tasks.rowfiles import READERS, NotRows
from fedprune.tasks.splits import FEWEST_ROWS, partition
from fedprune.tasks.task import Shard

if TYPE_CHECKING:
    from fedprune.tasks.options import Data

_Table = Mapping[str, Sequence[Any]]
"""Columns by name, all of one length; see `fedprune.tasks.rowfiles.Columns` for what is in them."""

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
    files = _files(data)
    stamp = tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files)
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
    filled = [(path, columns) for path, columns in pieces if _rows_in(columns)]
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


def _rows_in(columns: _Table) -> int:
    return len(next(iter(columns.values()), ()))


_Read = Callable[[Any], Any]
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
        cell = _parsed(cell)
    if not isinstance(cell, list):
        raise ValueError(f'{_short(cell)} is not a list; allowed: as ["a", "b"]')
    return [cell_text(one) for one in cell]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def _short(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else f"{text[:37]}..."


def column(table: _Table, option: str, name: str, read: _Read = cell_text) -> list[Any]:
    """A column, as texts or what else `read` makes of a cell.

    Args:
        table: the rows.
        option: the configuration key that named it.
        name: the column.
        read: `cell_text`, `as_number`, `as_list` or one like them.

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
    option: str, name: str, cells: Sequence[Any], read: _Read, rows: Sequence[int] | None
) -> list[Any]:
    at = range(len(cells)) if rows is None else rows
    found: list[Any] = []
    try:
        for i in at:
            found.append(read(cells[i]))
    except ValueError as error:
        raise ValueError(f"{option}={name!r}: row {at[len(found)] + 1}: {error}") from None
    return found


_Columns = dict[str, list[Any]]


def rows_with_text(
    config: Data,
    *more: str,
    read: Mapping[str, _Read] | None = None,
    blank: Collection[str] = (),
) -> _Columns:
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
    out: _Columns = {"text": [texts[i] for i in rows]}
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


def shares(
    config: Data,
    columns: _Columns,
    splits: Mapping[str, str],
    sizes: Sequence[int] | None = None,
    fewest: int = FEWEST_ROWS,
) -> list[list[int]]:
    """The row numbers of every partition; under "natural" `fedprune.tasks.owners.owned` says whose.

    Args:
        config: resolved configuration.
        columns: of `rows_with_text`.
        splits: split name to the column it works on.
        sizes: how much each row is; one each where left out.
        fewest: the least that can be cut in three.

    Raises:
        ValueError: there are too few owners, or too few rows.
    """
    if config.split == ALL_ROWS:
        return [list(range(_rows_in(columns)))]
    if config.split != "natural":
        return partition(config, splits[config.split], columns)
    owners = columns["client"]
    sizes = sizes or [1] * len(owners)
    dealt, told = owned(config, owners, sizes, fewest)
    if told.train_only and config.metrics == "noised":
        raise ValueError(
            f"small-owners='train-only': "
            f"{counted(told.train_only, 'client has', 'clients have')} too little to be measured "
            "on, and with noise nobody can tell it from a loss of 0; allowed: drop, group, --panel"
        )
    panel = dealt[-config.panel :]  # all of them without one
    if all(sum(sizes[i] for i in own) < fewest for own in panel):
        raise ValueError(
            f"panel={config.panel}: these clients have too little to be measured on; "
            "allowed: more of them, --small-owners drop or group"
        )
    return dealt


ALL_ROWS = "all rows"
"""In the place of a split: one partition, of a device that has rows of its own."""


def read_on_device(
    shards: Callable[[Data], Sequence[Shard]], *, classes: bool = False
) -> Callable[[Path, Data], Shard]:
    """`Task.local` of a task over a user's own rows: those in a device's own file or folder.

    Args:
        shards: the task's, of a configuration.
        classes: whether labels are classes, whose names and order all devices must share.

    Raises:
        ValueError: of `local`: as `shards`, or the configuration names no classes.
    """

    def local(path: Path, config: Data) -> Shard:
        if classes and not config.class_names:
            raise ValueError(
                "class-names=[]: a device knows the labels of its own rows only; "
                "allowed: the names of all classes"
            )
        own = {"data": str(path), "clients": 1, "split": ALL_ROWS}
        # As it is but for these: nothing is checked anew, nothing follows from them.
        (shard,) = shards(BaseModel.model_copy(config, update=own))
        return shard

    return local


def population(
    config: Data,
    size: Callable[[Any], int] = lambda _: 1,
    fewest: int = FEWEST_ROWS,
    read: _Read = cell_text,
) -> Population:
    """Who the clients of the rows are, and what of the rows no client holds.

    Args:
        config: resolved but for `clients`, which may be None: as many as there can be.
        size: how much a row with this text is.
        fewest: the least that can be cut in three.
        read: what a cell of a text means.

    Raises:
        ValueError: as `rows_with_text` and `shares`.
    """
    columns = rows_with_text(config, read={"text": read})
    texts = columns["text"]
    empty = _rows_in(read_table(config.data, config.encoding)) - len(texts)
    if config.split != "natural":
        return Population(config.clients, config.clients, rows_empty=empty)
    told = owned(config, columns["client"], list(map(size, texts)), fewest)[1]
    return replace(told, rows_empty=empty)
