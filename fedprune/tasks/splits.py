"""Who holds which rows: splits of one data set over partitions, by flwr-datasets' partitioners.

The partitioners see the row numbers and the columns a split needs, never the examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch

from fedprune.options.refusal import counted
from fedprune.randomness import derive
from fedprune.tasks.task import Part, Shard, examples

if TYPE_CHECKING:
    from fedprune.tasks.options import Data

SPLITS = {
    "natural": "one client per natural owner of the data (a speaking role)",
    "iid": "rows dealt at random in equal numbers",
    "dirichlet": "label shares per client from Dirichlet(alpha); small alpha = more skew",
    "shards": "sorted by label, cut into shards, two shards a client (McMahan et al. 2017)",
}

FEWEST_ROWS = 10
"""A shard needs this many rows, so that each of its three parts holds at least one."""


Partitioner = Any
"""One of flwr-datasets' partitioners, which has no types to import."""


def partition(config: Data, column: str, columns: Mapping[str, Sequence[Any]]) -> list[list[int]]:
    """The row numbers of every partition, each list ascending.

    Args:
        config: resolved configuration: split, clients, alpha, seed.
        column: the column that the split works on ("" for iid).
        columns: columns of the data set by name, all of one length.

    Raises:
        ValueError: a partition would hold fewer than `FEWEST_ROWS` rows.
    """
    # flwr-datasets and datasets take seconds to import: only a worker that splits pays.
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    rows = len(next(iter(columns.values())))
    chosen = {column: list(columns[column])} if column else {}
    table = Dataset.from_dict({"row": list(range(rows)), **chosen})
    seed = derive(config.seed, "split") % 2**31
    if config.split == "iid":
        table = table.shuffle(seed=seed)  # the partitioner itself cuts consecutive runs
    partitioner = _partitioner(config, column, rows, seed)
    partitioner.dataset = table
    allowed = f"at least {FEWEST_ROWS} rows each (fewer clients, or a larger alpha)"
    try:
        with redirect_stderr(StringIO()):  # a progress bar that cannot be switched off
            count = partitioner.num_partitions
            dealt = [sorted(partitioner.load_partition(i)["row"][:]) for i in range(count)]
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"clients={config.clients}: {config.split} cannot deal {counted(rows, 'row')} so: "
            f"{error}; "
            f"allowed: {allowed}"
        ) from None
    small = min(map(len, dealt))
    if config.split != "natural" and small < FEWEST_ROWS:
        raise ValueError(
            f"clients={config.clients}: the smallest partition would hold {counted(small, 'row')}; "
            f"allowed: {allowed}"
        )
    if sum(map(len, dealt)) != rows:
        raise ValueError(
            f"split={config.split!r}: {sum(map(len, dealt))} of {counted(rows, 'row')} were dealt; "
            "allowed: a split that deals each row once"
        )
    return dealt


def _partitioner(config: Data, column: str, rows: int, seed: int) -> Partitioner:
    from flwr_datasets import partitioner

    clients = {"num_partitions": config.clients}
    labelled = {**clients, "partition_by": column, "seed": seed}
    makers: dict[str, Callable[[], Partitioner]] = {
        "natural": lambda: partitioner.NaturalIdPartitioner(partition_by=column),
        "iid": lambda: partitioner.IidPartitioner(**clients),
        "dirichlet": lambda: partitioner.DirichletPartitioner(
            **labelled,
            alpha=config.alpha,
            min_partition_size=FEWEST_ROWS,
            self_balancing=False,
        ),
        "shards": lambda: partitioner.ShardPartitioner(
            **labelled,
            # Told two shards a client instead, it deals only rows that divide evenly.
            shard_size=-(-rows // (2 * config.clients)),
            keep_incomplete_shard=True,
        ),
    }
    return makers[config.split]()


def cut_rows(rows: Part, config: Data, partition_: int) -> Shard:
    """The three parts of a client's independent examples: at random, or with noise by content.

    Where noise hides an example (``--dp example``), one more or one less must not move the others.
    """
    if config.dp == "example":
        return cut_by_content(rows, config.seed)
    return cut_at_random(rows, config.seed, partition_)


def cut_by_content(rows: Part, seed: int) -> Shard:
    """Each row by itself, by a keyed hash of its columns: 80 % to train on, 10 %, 10 %.

    These are expectations: of few rows a part may be empty. The key follows from the seed and may
    be known: where a row goes is a function of that row alone, so that two shards that differ in
    one row differ in one row of one part, in that order, whatever the key. A key that changed with
    the run would hide no more, and a run could not be repeated. Equal rows, of other clients too,
    go to the same part, so that no test part has a copy of a training row; near-duplicates are
    different rows and may go apart.
    """
    # Standardised labels and their scaling are made from all labels, not of the row alone.
    shared = {"labels", "scaling"} if "scaling" in rows else set()
    own = {name: t for name, t in rows.items() if name not in shared}
    numbers = content_numbers(own, seed, "rows by content")
    at = torch.tensor([number / 2**64 for number in numbers], dtype=torch.float64)
    chosen = (at < 0.8, (at >= 0.8) & (at < 0.9), at >= 0.9)
    return Shard(*({name: t[here.to(t.device)] for name, t in rows.items()} for here in chosen))


def content_numbers(rows: Part, seed: int, purpose: str) -> list[int]:
    """A number of 64 bits for each row: a keyed hash of its columns, and of no other row's.

    The key follows from seed and purpose.
    """
    key = derive(seed, purpose).to_bytes(8, "big")
    table = [rows[name].detach().cpu().contiguous() for name in sorted(rows)]

    def number(row: int) -> int:
        sha = hashlib.sha256(key)
        for column in table:
            sha.update(column[row].numpy().tobytes())
        return int.from_bytes(sha.digest()[:8], "big")

    return [number(row) for row in range(examples(rows))]


def cut_at_random(rows: Part, seed: int, partition_: int) -> Shard:
    """80 % train, 10 % validation, 10 % test of independent examples, by a seeded shuffle.

    Of fewer than `FEWEST_ROWS` all are for training: the other parts have no row.
    """
    n = examples(rows)
    gen = torch.Generator().manual_seed(derive(seed, "cut", partition_))
    order = torch.randperm(n, generator=gen)
    held = n // 10
    pieces = order.split([n - 2 * held, held, held])
    parts = [{name: t[piece] for name, t in rows.items()} for piece in pieces]
    return Shard(*parts)
