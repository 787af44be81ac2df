"""What a task brings for its partitions, checked: shards, parts, tensors of equal length."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.options.refusal import counted, refuse
from fedprune.tasks.later import Counted, Later, LazyShards, each_shard, rows_counted
from fedprune.tasks.options import Data
from fedprune.tasks.task import Part, Shard, Task, examples
from fedprune.tensors.named import digest

ALLOWED = (
    "a dictionary of tensors that share their first dimension, one row an example, such as "
    "{'images': (N, ...), 'labels': (N,)}"
)
_PARTS = ("train", "validation", "test")


def shards_of(
    task: Task, config: Data, known: Mapping[int, Counted] | None = None
) -> Mapping[int, Shard]:
    """Every partition's shard, by partition; those that a task builds later, when they are needed.

    All are built once here, one after the other, to be checked and counted, unless what is counted
    of them is known.

    Raises:
        ValueError: there are more or fewer than clients, nobody has anything to validate or test
            on, or one is not what `checked` allows.
    """
    given: Any = task.shards(config)
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        refuse("task", config.task, f"its shards are {_kind(given)}", "a list of fedprune.Shard")
    found = given if isinstance(given, Later) else list(given)
    if len(found) != config.clients:
        reason = f"task {config.task} brings {counted(len(found), 'shard')}, one for each partition"
        refuse("clients", config.clients, reason, str(len(found) or "a task with data"))
    if isinstance(found, Later):
        shards: Mapping[int, Shard] = built_later(found.make, config, known)
    else:
        shards = checked(dict(enumerate(found)), config)
    counts = rows_counted(shards).values()
    for name in _PARTS[1:]:
        if not any(getattr(count, name) for count in counts):
            refuse("task", config.task, f"no partition has any {name} examples", "one at least")
    return shards


def built_later(
    make: Callable[[int], Shard], config: Data, known: Mapping[int, Counted] | None = None
) -> LazyShards:
    """The shards of all partitions, which `make` builds, each checked whenever it is built."""
    names: list[tuple[str, Part]] = []

    def one(partition: int) -> Shard:
        shard = _shard(make(partition), partition, config)
        parts = _parts(shard, partition)
        names[:] = names or parts[:1]
        _check_names([names[0], *parts], config)
        return shard

    return LazyShards(range(config.clients), one, dict(known or {}), source=make)


def checked(shards: Mapping[int, Shard], config: Data) -> dict[int, Shard]:
    """The shards, with the arrays of NumPy in their parts as tensors.

    Raises:
        ValueError: something is no shard or no part, a partition has nothing to train on, or parts
            have tensors of other names.
    """
    found = {p: _shard(shard, p, config) for p, shard in shards.items()}
    _check_names([part for p, s in found.items() for part in _parts(s, p)], config)
    return found


def _parts(shard: Shard, partition: int) -> list[tuple[str, Part]]:
    return [(f"shard {partition}'s {name}", getattr(shard, name)) for name in _PARTS]


def _check_names(parts: Sequence[tuple[str, Part]], config: Data) -> None:
    for where, part in parts:
        if part.keys() != parts[0][1].keys():
            reason = f"{where} has {sorted(part)}, {parts[0][0]} {sorted(parts[0][1])}"
            refuse("task", config.task, reason, "the same names in every part")


def _shard(shard: Any, partition: int, config: Data) -> Shard:
    where = f"shard {partition}"
    if not isinstance(shard, Shard):
        refuse("task", config.task, f"{where} is {_kind(shard)}", "fedprune.Shard")
    parts = {name: _part(getattr(shard, name), f"{where}'s {name}", config) for name in _PARTS}
    if not examples(parts["train"]):
        refuse("task", config.task, f"{where} has no train examples", "one at least")
    return Shard(**parts)


def _part(given: Any, where: str, config: Data) -> Part:
    if not isinstance(given, Mapping):
        refuse("task", config.task, f"{where} is {_kind(given)}", ALLOWED)
    if not given:
        refuse("task", config.task, f"{where} is empty", ALLOWED)
    part = {name: _tensor(value, f"{where}, {name!r}", config) for name, value in given.items()}
    lengths = {name: len(t) for name, t in part.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in lengths.items())
        refuse("task", config.task, f"{where} has tensors of other lengths: {told}", ALLOWED)
    return part


def _tensor(value: Any, where: str, config: Data) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim:
        return torch.as_tensor(value)
    if not isinstance(value, Tensor):
        refuse("task", config.task, f"{where} is {_kind(value)}", ALLOWED)
    if not value.dim() or value.is_sparse:
        what = "a sparse tensor" if value.is_sparse else "a tensor without dimensions"
        refuse("task", config.task, f"{where} is {what}", ALLOWED)
    return value


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def data_digest(shards: Mapping[int, Shard]) -> str:
    """SHA-256 (hex) over every partition's parts."""
    sha = hashlib.sha256()
    for partition, shard in each_shard(shards):
        for name, part in sorted(vars(shard).items()):
            sha.update(f"{partition}|{name}|{digest(part)}".encode())
    return sha.hexdigest()
