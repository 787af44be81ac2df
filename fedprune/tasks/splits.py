"""Who holds which rows: splits of one data set over partitions, as flwr-datasets deals them.

A split sees the row numbers and the column it needs, never the examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.options.refusal import counted
from fedprune.randomness import derive
from fedprune.tasks.later import Later
from fedprune.tasks.options import Data
from fedprune.tasks.task import Part, Shard, examples

SPLITS = {
    "natural": "one client per natural owner of the data (a speaking role)",
    "iid": "rows dealt at random in equal numbers",
    "dirichlet": "label shares per client from Dirichlet(alpha); small alpha = more skew",
    "shards": "sorted by label, cut into shards, two shards a client (McMahan et al. 2017)",
}

FEWEST_ROWS = 10
"""A shard needs this many rows, so that each of its three parts holds at least one."""


_TRIES = 11
"""How often shares are drawn until every client holds enough rows."""


def partition(config: Data, column: str, columns: Mapping[str, Sequence[Any]]) -> list[list[int]]:
    """The row numbers of every partition, each list ascending.

    Those of flwr-datasets' partitioners, bit for bit, which take two seconds to import. The split
    works on one of the columns, which are of one length ("" for iid).

    Raises:
        ValueError: a partition would hold fewer than `FEWEST_ROWS` rows.
    """
    rows = len(next(iter(columns.values())))
    values = list(columns[column]) if column else []
    gen = np.random.default_rng(derive(config.seed, "split") % 2**31)
    needed = f"at least {FEWEST_ROWS} rows each, of which some are held out"
    allowed = f"{needed} ({_instead(config, rows)})"
    try:
        if config.clients > rows and config.split in ("dirichlet", "shards"):
            raise ValueError("more partitions than rows")
        dealt = [np.sort(own).tolist() for own in _DEALERS[config.split](config, values, rows, gen)]
    except ValueError as error:
        raise ValueError(
            f"clients={config.clients}: {config.split} cannot deal {counted(rows, 'row')} so: "
            f"{error}; "
            f"allowed: {allowed}"
        ) from None
    small = min(map(len, dealt))
    if config.split != "natural" and small < FEWEST_ROWS:
        raise ValueError(
            f"clients={config.clients}: of the {counted(rows, 'row')} of data one client would "
            f"hold {small}; allowed: {allowed}"
        )
    return dealt


def _instead(config: Data, rows: int) -> str:
    """What gives every client enough rows."""
    if rows < FEWEST_ROWS:
        return "more data"
    skewed = config.split == "dirichlet" and rows >= FEWEST_ROWS * config.clients
    return f"fewer clients, or {'a larger alpha' if skewed else 'more data'}"


_Rows = NDArray[np.int64]
_Dealer = Callable[["Data", Sequence[Any], int, np.random.Generator], Sequence[_Rows]]


def _by_owner(
    _config: Data, values: Sequence[Any], _rows: int, _gen: np.random.Generator
) -> list[_Rows]:
    """As NaturalIdPartitioner: a partition for each value, in the values' order."""
    owned: dict[Any, list[int]] = {}
    for row, owner in enumerate(values):
        owned.setdefault(owner, []).append(row)
    return [np.array(owned[owner]) for owner in sorted(owned)]


def _evenly(
    config: Data, _values: Sequence[Any], rows: int, gen: np.random.Generator
) -> list[_Rows]:
    """As IidPartitioner of a shuffled data set: consecutive runs, the first ones longer by one."""
    return np.array_split(gen.permutation(rows), config.clients)


def _by_dirichlet(
    config: Data, values: Sequence[Any], _rows: int, gen: np.random.Generator
) -> list[_Rows]:
    """As DirichletPartitioner: of each label a share to each client, until all hold enough rows."""
    labels = np.array(values)
    of_label = [np.nonzero(labels == label)[0] for label in sorted(set(values))]
    alpha = np.full(config.clients, config.alpha)
    for _ in range(_TRIES):
        cuts = [np.cumsum(gen.dirichlet(alpha)) * len(own) for own in of_label]
        both = zip(of_label, cuts, strict=True)
        dealt = [np.split(own, at.astype(int)[:-1]) for own, at in both]
        held = [np.concatenate(parts) for parts in zip(*dealt, strict=True)]
        if min(map(len, held)) >= FEWEST_ROWS:
            return held
    raise ValueError(f"in {_TRIES} draws of alpha {config.alpha} some client held too few rows")


def _by_shards(
    config: Data, values: Sequence[Any], rows: int, gen: np.random.Generator
) -> list[_Rows]:
    """As ShardPartitioner: sorted by label, cut into two shards a client; the last is shorter."""
    order, size = np.argsort(np.array(values), kind="stable"), -(-rows // (2 * config.clients))
    shards = -(-rows // size)
    if shards < config.clients:
        raise ValueError(f"{counted(shards, 'shard')} of {counted(rows, 'row')}")
    drawn = np.array_split(gen.permutation(shards), config.clients)
    return [np.concatenate([order[s * size : (s + 1) * size] for s in own]) for own in drawn]


_DEALERS: dict[str, _Dealer] = {
    "natural": _by_owner,
    "iid": _evenly,
    "dirichlet": _by_dirichlet,
    "shards": _by_shards,
}


@dataclass(frozen=True)
class CutRows:
    """What cuts a partition's shard out of rows that are kept once, for all partitions.

    Images of bytes (uint8) are cut as numbers in 0..1.
    """

    rows: Part
    dealt: Sequence[Sequence[int]]
    config: Data

    def __call__(self, partition_: int) -> Shard:
        """The shard of a partition."""
        own = torch.as_tensor(self.dealt[partition_])
        if self.config.dp == "example":
            return cut_by_content(self._of(own), self.config.seed)
        pieces = _pieces(len(own), self.config.seed, partition_)
        return Shard(*(self._of(own[piece]) for piece in pieces))

    def _of(self, own: Tensor) -> Part:
        return in_unit(**{name: t[own] for name, t in self.rows.items()})


def in_unit(**rows: Tensor) -> Part:
    """The rows with images of bytes as numbers in 0..1."""
    images = rows.get("images")
    if images is not None and images.dtype == torch.uint8:
        rows["images"] = images.float() / 255
    return rows


def cut_later(rows: Part, dealt: Sequence[Sequence[int]], config: Data) -> Later:
    """The shards of rows that were dealt: three parts each, cut when the shard is needed."""
    return Later(len(dealt), CutRows(rows, dealt, config))


def cut_rows(rows: Part, config: Data) -> Shard:
    """The three parts of a device's independent examples: at random, or with noise by content.

    Where noise hides an example (``--dp example``), one more or one less must not move the others.
    """
    if config.dp == "example":
        return cut_by_content(rows, config.seed)
    return cut_at_random(rows, config.seed, 0)


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
    pieces = _pieces(examples(rows), seed, partition_)
    return Shard(*({name: t[piece] for name, t in rows.items()} for piece in pieces))


def _pieces(n: int, seed: int, partition_: int) -> Sequence[Tensor]:
    """Which of n rows are in train, validation and test."""
    gen = torch.Generator().manual_seed(derive(seed, "cut", partition_))
    order = torch.randperm(n, generator=gen)
    held = n // 10
    return (order[: n - 2 * held], order[n - 2 * held : n - held], order[n - held :])
