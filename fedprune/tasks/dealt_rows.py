"""Who holds which of a user's own rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedprune.options.refusal import counted
from fedprune.tasks.cells import Columns, ReadCell, cell_text
from fedprune.tasks.options import Data
from fedprune.tasks.owners import Population, owned
from fedprune.tasks.splits import FEWEST_ROWS, partition
from fedprune.tasks.tables import read_table, rows_in, rows_with_text
from fedprune.tasks.task import Shard


def shares(
    config: Data,
    columns: Columns,
    splits: Mapping[str, str],
    sizes: Sequence[int] | None = None,
    fewest: int = FEWEST_ROWS,
) -> list[list[int]]:
    """The row numbers of every partition; under "natural" `fedprune.tasks.owners.owned` says whose.

    `splits` says which column a split works on, `sizes` how much each row is (1 where left out),
    `fewest` the least that can be cut in three.

    Raises:
        ValueError: there are too few owners, or too few rows.
    """
    if config.split == ALL_ROWS:
        return [list(range(rows_in(columns)))]
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

    Of `classes` all devices must share the names and their order.

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
    read: ReadCell = cell_text,
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
    empty = rows_in(read_table(config.data, config.encoding)) - len(texts)
    if config.split != "natural":
        return Population(config.clients, config.clients, rows_empty=empty)
    told = owned(config, columns["client"], list(map(size, texts)), fewest)[1]
    return replace(told, rows_empty=empty)
