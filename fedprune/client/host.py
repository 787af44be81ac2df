"""Hosts: one resident model, and the shards of the partitions that are served with it.

Partition p of n always belongs to host p * hosts // n, so the order of every sum is fixed whoever
is sampled, fails or works where. How a question is answered is `fedprune.client.serving`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedprune.client.rehearsal import try_out
from fedprune.client.tokens import read_with
from fedprune.config import RunConfig
from fedprune.learning.local_training import Train, tune
from fedprune.learning.options import trains
from fedprune.learning.preparation import prepared
from fedprune.options.refusal import ConfigError
from fedprune.protocol.client_privacy import hides
from fedprune.protocol.held_weights import BaseModel, base_at, base_of, read_by
from fedprune.protocol.models import dense_model, layout_after, layout_for
from fedprune.runtime.process import TRIMMED_FROM, hand_back_at_once, put_back, trim_memory
from fedprune.streaming.blocks import is_streamed
from fedprune.structure.edits import Edits
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.claims import TooLarge, within_memory
from fedprune.tasks.later import LazyShards, labels_in
from fedprune.tasks.options import is_trained
from fedprune.tasks.pretrained import place_of
from fedprune.tasks.shards import checked, shards_of
from fedprune.tasks.task import Shard, Task
from fedprune.tensors.models import counters_of, empty_out
from fedprune.tensors.named import Tensors

log = logging.getLogger("fedprune")

REBUILT = 3
"""Models of other edits that a host keeps: tiers are asked one after the other, in every round."""


@dataclass(frozen=True)
class Host:
    """What a process that serves partitions keeps: built once, used for every question."""

    config: RunConfig
    task: Task  # what is learned
    model: nn.Module  # the resident model; its values are overwritten
    layout: Layout
    shards: Mapping[int, Shard]  # the partitions that are served
    device: torch.device  # where the model is
    tuned: nn.Module  # the same model, compiled where that was asked for
    edits: Edits = ()  # what was cut out of the dense model
    # the same host around the models of other edits, the newest last
    rebuilt: dict[Edits, Host] = field(default_factory=dict)
    # the newest model to learn from, by its digest
    teachers: dict[str, nn.Module] = field(default_factory=dict)
    # the model's buffers that are no state, as it was built
    counters: Tensors = field(default_factory=dict)
    train: Train = tune  # how its clients tune
    # the newest question, as long as its packet is there (`fedprune.client.serving`)
    newest: list[Any] = field(default_factory=list)
    base: BaseModel | None = None  # the base model as its files have it; None: all weights are sent
    # what was said of clients' code that raises where noise hides it
    said: set[str] = field(default_factory=set)
    lends: bool = False  # as in `fedprune.client.context.ClientContext`


def build_host(
    config: RunConfig,
    shards: Mapping[int, Shard] | None = None,
    *,
    tried: bool = False,
    train: Train = tune,
) -> Host:
    """Build the model and the shards (all of the task's, unless given), and try them together.

    What was `tried` before is not again. Clients tune by `train`, which takes and returns what
    `fedprune.learning.local_training.tune` does.
    """
    if config.batched > 1 and train is not tune:
        why = "clients train by code of their own, each by itself"
        raise ConfigError(f"batched={config.batched}: {why}; allowed: 1")
    with put_back():
        host = replace(_opened(config, shards), train=train)
        if not tried:
            held = read_by(host.base)
            try_out(host.task, config, host.model, host.layout, host.shards, train, held)
            trim_memory(host.layout.parameters)
        return host


def _opened(config: RunConfig, shards: Mapping[int, Shard] | None) -> Host:
    task = tasks_of(config.plugin)[config.task]
    everyone = shards is None
    if shards is None:
        shards = shards_of(task, config)
    elif not isinstance(shards, LazyShards):
        shards = checked(shards, config)
    model = dense_model(config) if everyone else _no_larger_than_memory(config)
    cuda = torch.cuda.is_available() and config.gpus != 0 and not is_streamed(model)
    device = torch.device("cuda" if cuda else "cpu")
    layout = layout_for(config, model)
    if layout.parameters >= TRIMMED_FROM and not trains(config):
        hand_back_at_once()
    base = base_of(config, model)
    model = model.to(device)
    return Host(
        *(config, task, model, layout, shards, device, prepared(model, config)),
        counters=counters_of(model),
        base=base,
    )


def _no_larger_than_memory(config: RunConfig) -> nn.Module:
    """The dense model of a device, whose size is a server's word.

    Raises:
        ValueError: it is larger than this machine has memory for; found without allocating it,
            where the task can build it on PyTorch's meta device. One that is read block by block
            has no bound but its files.
    """
    if config.streamed:
        return dense_model(config)
    name, trained = f"model={config.model!r}", is_trained(config)
    if not Path(
        place_of(config.model)
    ).is_dir():  # what is in a folder is held against its own files
        try:
            with within_memory(name, trained=trained), torch.device("meta"):
                tasks_of(config.plugin)[config.task].model(config)
        except TooLarge:
            raise
        except Exception as error:  # such as a model that reads its weights from elsewhere
            log.debug("not to be built on the meta device: %s", error)
    with within_memory(name, trained=trained):
        return dense_model(config)


def with_edits(host: Host, edits: Edits) -> Host:
    """The host around the model with these edits; of those rebuilt the newest few are kept."""
    if edits == host.edits:
        return host
    if edits in host.rebuilt:
        host.rebuilt[edits] = host.rebuilt.pop(edits)  # the newest again
    else:
        empty_out(host.model)  # each question brings values
        model = dense_model(host.config)
        layout = layout_after(host.config, model, edits)
        model = model.to(host.device)
        shards = read_with(edits, host.task, host.shards)
        whole = replace(host, model=model, layout=layout, edits=edits, shards=shards)
        what: dict[str, Any] = {"counters": counters_of(model), "base": base_at(host.base, layout)}
        fresh = replace(whole, rebuilt={}, newest=[], **what)
        while len(host.rebuilt) >= REBUILT:
            del host.rebuilt[next(iter(host.rebuilt))]
        host.rebuilt[edits] = replace(fresh, tuned=prepared(model, host.config))
    return host.rebuilt[edits]


def grouped(partitions: Sequence[int], config: RunConfig) -> dict[int, list[int]]:
    """Host to the partitions of it that are asked, both ascending."""
    groups: dict[int, list[int]] = {}
    for partition in sorted(partitions):
        groups.setdefault(partition * config.hosts // config.clients, []).append(partition)
    return groups


def labels_of(host: Host) -> dict[int, int]:
    """The partitions a host can serve and the labels in their training parts.

    How many labels a client has is its own affair where its answers are: then 0 stands for it.
    """
    if hides(host.config):
        return dict.fromkeys(sorted(host.shards), 0)
    return labels_in(host.task, host.shards)
