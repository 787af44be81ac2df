"""What a worker on Ray serves: the ClientApp, on shards that the driver has read already."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

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
from fedprune.tasks.task import Part, Shard

PARTS = ("train", "validation", "test")


def shards_sent(config: RunConfig, shards: Mapping[int, Shard]) -> tuple[str, dict[int, Any]]:
    """Shards as arrays, with the text of the configuration that they are for."""
    arrays = {
        p: [{n: _array(t) for n, t in getattr(shard, part).items()} for part in PARTS]
        for p, shard in shards.items()
    }
    return to_toml(config), arrays


def serving_app(
    sent: tuple[str, Mapping[int, Any]] | None, paths: Mapping[str, str]
) -> tuple[ClientApp, Context]:
    """The ClientApp of a worker, and the context of its messages.

    Args:
        sent: what `shards_sent` gave. Of another configuration the worker reads data itself.
        paths: where a file that this node lacked is now, by its option.
    """
    own, arrays = sent or ("", {})

    @functools.lru_cache(maxsize=1)
    def host_of(text: str, train: Train) -> Host:
        config = recorded(text, paths=paths)
        if text != own:
            return build_host(config, train=train)
        shards = {p: Shard(*map(_part, parts)) for p, parts in arrays.items()}
        return build_host(config, shards, tried=True, train=train)

    if own:
        # Every worker builds it while others do. What is wrong with it is said when it is asked.
        with suppress(Exception):
            host_of(own, tune)
    return client_app(simulated=host_of), Context(OURSELVES, OURSELVES, {}, RecordDict(), {})


def _array(tensor: Tensor) -> Any:
    """What Ray keeps in shared memory; of a type that NumPy lacks, the tensor."""
    return tensor if tensor.dtype is torch.bfloat16 else tensor.detach().cpu().numpy()


def _part(arrays: Mapping[str, Any]) -> Part:
    """Tensors of the worker's own: what a loss does to its batch in place must not reach others."""
    return {
        name: array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
        for name, array in arrays.items()
    }
