"""What a worker on Ray serves: the ClientApp, on shards that the driver has read already."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedprune.client.host import Host, build_host
from fedprune.config import RunConfig, recorded, to_toml
from fedprune.engines.flower.client_app import client_app
from fedprune.engines.ray.identity import OURSELVES
from fedprune.learning.local_training import Train, tune
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.later import KEPT, Counted, LazyShards, each_shard
from fedprune.tasks.shards import built_later, shards_of
from fedprune.tasks.splits import CutRows
from fedprune.tasks.task import Part, Shard

PARTS = ("train", "validation", "test")


def shards_sent(config: RunConfig, shards: Mapping[int, Shard]) -> dict[str, Any]:
    """What workers make their shards of, in plain types, with the text of the configuration.

    Rows that shards are cut from are sent once (`rows`, `dealt`). Shards that a plug-in builds when
    they are needed, and those that a process does not keep all of, each worker builds by itself.
    The others are sent as arrays (`arrays`).
    """
    sent: dict[str, Any] = {"text": to_toml(config)}
    if isinstance(shards, LazyShards):
        sent |= {"counted": {p: tuple(n) for p, n in shards.counted.items()}}
        sent |= {"labels": dict(shards.labels)}
        if isinstance(shards.source, CutRows):
            rows = {name: _array(t) for name, t in shards.source.rows.items()}
            return sent | {"rows": rows, "dealt": [np.asarray(own) for own in shards.source.dealt]}
        if config.plugin or sum(n.size for n in shards.counted.values()) > KEPT:
            return sent
    arrays = {
        p: [{n: _array(t) for n, t in getattr(shard, part).items()} for part in PARTS]
        for p, shard in each_shard(shards)
    }
    return sent | {"arrays": arrays}


def serving_app(sent: Mapping[str, Any], paths: Mapping[str, str]) -> tuple[ClientApp, Context]:
    """The ClientApp of a worker, and the context of its messages.

    Of another configuration than that of what `shards_sent` gave the worker reads data itself.
    `paths`, by option, are where files that this node lacked are now.
    """
    own = sent.get("text", "")

    @functools.lru_cache(maxsize=1)
    def host_of(text: str, train: Train) -> Host:
        config = recorded(text, paths=paths)
        if text != own:
            return build_host(config, train=train)
        return build_host(config, _shards(config, sent), tried=True, train=train)

    if own:
        # Every worker builds it while others do. What is wrong with it is said when it is asked.
        with suppress(Exception):
            host_of(own, tune)
    return client_app(simulated=host_of), Context(OURSELVES, OURSELVES, {}, RecordDict(), {})


def _shards(config: RunConfig, sent: Mapping[str, Any]) -> Mapping[int, Shard]:
    if "counted" not in sent:
        return {p: Shard(*map(_part, parts)) for p, parts in sent["arrays"].items()}
    known = {p: Counted(*numbers) for p, numbers in sent["counted"].items()}
    if "rows" in sent:
        rows = {name: _shared(array) for name, array in sent["rows"].items()}
        found = built_later(CutRows(rows, sent["dealt"], config), config, known)
    elif "arrays" in sent:
        arrays = sent["arrays"]
        found = built_later(lambda p: Shard(*map(_part, arrays[p])), config, known)
    else:
        task = tasks_of(config.plugin)[config.task]
        found = cast(LazyShards, shards_of(task, config, known))
    return replace(found, labels=dict(sent["labels"]))


def _shared(array: Any) -> Tensor:
    """A tensor over Ray's shared memory, which may be read only: shards are copied out of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _array(tensor: Tensor) -> Any:
    """What Ray keeps in shared memory; of a type that NumPy lacks, the tensor."""
    return tensor if tensor.dtype is torch.bfloat16 else tensor.detach().cpu().numpy()


def _part(arrays: Mapping[str, Any]) -> Part:
    """Tensors of the worker's own: what a loss does to its batch in place must not reach others."""
    return {
        name: array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
        for name, array in arrays.items()
    }
