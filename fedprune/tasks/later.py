"""Shards that are built when they are first needed, of which the newest are kept.

A task whose `shards` gives back a `Later` need not hold them all: what a run wants to know of every
shard, how many labels and rows it has, is counted once, one shard after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

from fedprune.tasks.task import Shard, Task, examples

KEPT = 2**24
"""Bytes of built shards that a process keeps at most, the newest one aside."""

OVERHEAD = 8192
"""Bytes that a shard of two tensors a part takes beside its numbers, about, as measured."""


@dataclass(frozen=True, eq=False)
class Later(Sequence[Shard]):
    """So many shards, each of which `make` builds from its number: the same whenever it is asked.

    What is kept between two askings is up to who asks.
    """

    size: int
    make: Callable[[int], Shard]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> list[Shard]: ...
    def __getitem__(self, at: int | slice) -> Shard | list[Shard]:
        """A shard; of a slice, the list of its shards."""
        where = range(self.size)[at]
        return self.make(where) if isinstance(where, int) else [self.make(p) for p in where]


class Counted(NamedTuple):
    """What is known of a shard that need not be there.

    The rows of each part, and the bytes of its numbers.
    """

    train: int
    validation: int
    test: int
    size: int


@dataclass(eq=False)
class LazyShards(Mapping[int, Shard]):
    """Shards by partition: built when first needed, and again when they had to make room.

    Attributes:
        partitions: whose, ascending.
        make: builds one from its partition; the same whenever it is asked.
        counted: what is known of each, filled in when it is first built.
        labels: how many each trains on, as far as they were counted (`labels_in`).
        source: what `make` checks the shards of.
        most: bytes of them that are kept.
    """

    partitions: Collection[int]
    make: Callable[[int], Shard]
    counted: dict[int, Counted] = field(default_factory=dict)
    labels: dict[int, int] = field(default_factory=dict)
    source: Callable[[int], Shard] | None = None
    most: int = KEPT
    _kept: OrderedDict[int, Shard] = field(default_factory=OrderedDict)
    _held: int = 0

    def __len__(self) -> int:
        return len(self.partitions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.partitions)

    def __contains__(self, partition: object) -> bool:
        return partition in self.partitions

    def __getitem__(self, partition: int) -> Shard:
        """A shard that will be needed again: those used longest ago make room for it."""
        shard = self.once(partition)
        if partition in self._kept:
            self._kept.move_to_end(partition)
            return shard
        self._held += self._takes(partition)
        while self._kept and self._held > self.most:
            oldest, _ = self._kept.popitem(last=False)
            self._held -= self._takes(oldest)
        self._kept[partition] = shard
        return shard

    def once(self, partition: int) -> Shard:
        """The same of one that is asked for as all others are: no other makes room for it."""
        if partition not in self.partitions:
            raise KeyError(partition)
        kept = self._kept.get(partition)
        if kept is not None:
            return kept
        shard = self.make(partition)
        self.counted[partition] = count_of(shard)
        if self._held + self._takes(partition) <= self.most:
            self._held += self._takes(partition)
            self._kept[partition] = shard
        return shard

    def _takes(self, partition: int) -> int:
        return self.counted[partition].size + OVERHEAD


def count_of(shard: Shard) -> Counted:
    """What is counted of a shard."""
    parts = (shard.train, shard.validation, shard.test)
    size = sum(t.numel() * t.element_size() for part in parts for t in part.values())
    return Counted(examples(shard.train), examples(shard.validation), examples(shard.test), size)


def rows_counted(shards: Mapping[int, Shard]) -> dict[int, Counted]:
    """What is counted of each shard, by partition; of those counted before none is built."""
    known = shards.counted if isinstance(shards, LazyShards) else {}
    return {p: known[p] if p in known else count_of(shard_once(shards, p)) for p in shards}


def shard_once(shards: Mapping[int, Shard], partition: int) -> Shard:
    """A shard that is looked at as all others are, see `LazyShards.once`."""
    return shards.once(partition) if isinstance(shards, LazyShards) else shards[partition]


def each_shard(shards: Mapping[int, Shard]) -> Iterator[tuple[int, Shard]]:
    """Every partition and its shard, one after the other, in the order of the partitions."""
    return ((p, shard_once(shards, p)) for p in sorted(shards))


def labels_in(task: Task, shards: Mapping[int, Shard]) -> dict[int, int]:
    """How many labels each partition trains on; of those counted before no shard is built."""
    known = shards.labels if isinstance(shards, LazyShards) else {}
    for p in sorted(shards):
        if p not in known:
            known[p] = task.labels(shard_once(shards, p).train)
    return dict(known)
