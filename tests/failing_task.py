"""A plug-in for tests: digits, but one client's code raises as soon as weights are gone.

The client of the task "ending" ends the worker of Ray that it trains in, always; in a process that
is none it raises.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from fedprune import TASKS as BUILT_IN
from fedprune import Loss, RunConfig, Shard
from fedprune.tasks.images import digits
from fedprune.tasks.task import Part

MARK = 2.0**-20
FAILS = 1


def marked_shards(config: RunConfig) -> Sequence[Shard]:
    shards = list(digits(config))
    shard = shards[FAILS]
    images = shard.train["images"].clone()
    images[..., 0, 0] = MARK
    shards[FAILS] = replace(shard, train={**shard.train, "images": images})
    return shards


def pruned(model: nn.Module) -> bool:
    return any(bool((p == 0).any()) for p in model.parameters() if p.ndim > 1)


def failing_loss(model: nn.Module, batch: Part) -> Loss:
    if marked(batch) and pruned(model):
        raise MemoryError("no room\nfor this batch")
    return BUILT_IN["digits"].loss(model, batch)


def marked(batch: Part) -> bool:
    return bool((batch["images"][..., 0, 0] == MARK).all())


def ending_loss(model: nn.Module, batch: Part) -> Loss:
    if marked(batch) and model.training:
        if Path("/proc/self/cmdline").read_text().startswith("ray::"):
            os._exit(3)
        raise MemoryError("no room for this batch")
    return BUILT_IN["digits"].loss(model, batch)


FAILING = replace(BUILT_IN["digits"], shards=marked_shards, loss=failing_loss)
TASKS = {"failing": FAILING, "ending": replace(FAILING, loss=ending_loss)}
