"""A user's own rows: csv, tsv, json, jsonl, parquet or txt files, read by `datasets`."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.tasks.splits import FEWEST, partition

if TYPE_CHECKING:
    from fedprune.config import RunConfig

Table = Mapping[str, Sequence[Any]]
"""Columns by name, all of one length."""

_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    # A text "NA" or "null" is a text.
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}
"""Suffix to the builder of `datasets` and its options."""

SUFFIXES = ", ".join(_BUILDERS)


def read_table(data: str) -> Table:
    """The rows of a file, or of all files of one kind in a folder, in the order of their names.

    A txt file has a row a line and one column, "text". Read once in a process as long as the
    files do not change.

    Raises:
        FileNotFoundError: there is no such file, or none that can be read.
        ValueError: there are several kinds of files, or no rows.
    """
    files = _files(data)
    stamp = tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files)
    return _read(data, stamp)


def _files(data: str) -> list[Path]:
    path = Path(data)
    if not data or not path.exists():
        raise FileNotFoundError(
            f"data={data!r}: no such file or folder; allowed: one of {SUFFIXES}, or a folder of it"
        )
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [f for f in inside if f.suffix.lower() in _BUILDERS and f.is_file()]
    if not files:
        raise FileNotFoundError(
            f"data={data!r}: no file that can be read; allowed: names that end in {SUFFIXES}"
        )
    kinds = sorted({f.suffix.lower() for f in files})
    if len(kinds) > 1:
        raise ValueError(
            f"data={data!r}: files of several kinds ({', '.join(kinds)}); allowed: one kind"
        )
    return files


@functools.lru_cache(maxsize=4)
def _read(data: str, stamp: tuple[tuple[str, int, int], ...]) -> Table:
    # datasets takes seconds to import: only who reads a table pays.
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    files = [name for name, _, _ in stamp]
    builder, options = _BUILDERS[Path(files[0]).suffix.lower()]
    if not any(size for _, _, size in stamp):
        raise ValueError(f"data={data!r}: empty; allowed: at least one row")
    try:
        with tempfile.TemporaryDirectory() as cache:  # or private rows would stay in the user's
            rows = load_dataset(
                builder, data_files=files, split="train", cache_dir=cache, **options
            )
            table: Table = rows.to_dict()
    except Exception as error:  # of a dozen kinds, by builder
        cause = error.__cause__ or error
        if "no data" in str(cause):  # what it says of a csv file with a heading alone
            raise ValueError(f"data={data!r}: no rows; allowed: at least one") from None
        raise ValueError(
            f"data={data!r}: not {builder}: {' '.join(str(cause).split())[:200]}; "
            f"allowed: rows with the same columns in every file"
        ) from None
    if not table or not len(next(iter(table.values()))):
        raise ValueError(f"data={data!r}: no rows; allowed: at least one")
    return table


def column(table: Table, option: str, name: str) -> list[str]:
    """A column as texts; nothing (None) is the empty text.

    Args:
        table: the rows.
        option: the configuration key that named it.
        name: the column.

    Raises:
        ValueError: there is no such column, with those there are.
    """
    if name not in table:
        raise ValueError(
            f"{option}={name!r}: no such column in the data; allowed: {', '.join(table)}"
        )
    return ["" if value is None else str(value) for value in table[name]]


Columns = dict[str, list[str]]


def rows_with_text(config: RunConfig, *more: str) -> Columns:
    """The columns that a task needs, by what they are for; rows with an empty text are left out.

    Args:
        config: resolved configuration.
        more: "label" or "target", where the task needs them.

    Raises:
        ValueError: a column is not there, or no row has a text.
    """
    named = {
        "text": config.text_column,
        "label": config.label_column,
        "target": config.target_column,
        "client": config.client_column,
    }
    needed = ["text", *more, *(["client"] if config.split == "natural" else [])]
    if config.split == "natural" and not config.client_column:
        raise ValueError(
            "split='natural': no column says whose row it is; allowed: --client-column COLUMN"
        )
    table = read_table(config.data)
    columns = {kind: column(table, f"{kind}-column", named[kind] or kind) for kind in needed}
    rows = [i for i, text in enumerate(columns["text"]) if text.strip()]
    if not rows:
        raise ValueError(f"data={config.data!r}: no row has a text; allowed: at least one")
    for kind in {"label", "client"} & columns.keys():
        empty = sum(not columns[kind][i].strip() for i in rows)
        if empty:
            raise ValueError(
                f"{kind}-column={named[kind]!r}: {empty} of {len(rows)} rows have none; "
                "allowed: a value in every row"
            )
    return {kind: [values[i] for i in rows] for kind, values in columns.items()}


def shares(config: RunConfig, columns: Columns, splits: dict[str, str]) -> list[list[int]]:
    """The row numbers of every partition; the `clients` largest owners under "natural".

    Raises:
        ValueError: there are too few owners, or too few rows.
    """
    if config.split != "natural":
        return partition(config, splits[config.split], columns)
    held = Counter(columns["client"])
    able = sum(rows >= FEWEST for rows in held.values())
    if config.clients > able:
        raise ValueError(
            f"clients={config.clients}: {able} values of client-column="
            f"{config.client_column!r} have {FEWEST} rows or more; allowed: 1 to {able}"
        )
    largest = set(sorted(held, key=lambda owner: (-held[owner], owner))[: config.clients])
    chosen = [i for i, owner in enumerate(columns["client"]) if owner in largest]
    owners = {"client": [columns["client"][i] for i in chosen]}
    return [[chosen[i] for i in own] for own in partition(config, "client", owners)]
