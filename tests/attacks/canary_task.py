"""A plug-in task whose clients are canaries: each has one direction, or its opposite, by a coin.

A step of any client moves the weights by ten times its direction, whatever they are.
"""

from collections.abc import Sequence

import torch
from torch import nn

from fedprune import Loss, RunConfig, Shard, Task
from fedprune.randomness import generator
from fedprune.tasks.task import Part

OWN = 4
LENGTH = 10.0


def coins(config: RunConfig) -> torch.Tensor:
    return torch.rand(config.clients, generator=generator(config.seed, "coins")) < 0.5


def directions(config: RunConfig) -> torch.Tensor:
    values = torch.randn(config.clients, OWN, generator=generator(config.seed, "directions"))
    out = torch.zeros(config.clients, config.clients, OWN)
    out[range(config.clients), range(config.clients)] = values / values.norm(dim=1, keepdim=True)
    return out.flatten(1)


def model(config: RunConfig) -> nn.Module:
    net = nn.Sequential(nn.Linear(OWN * config.clients, 1, bias=False))
    nn.init.zeros_(net[0].weight)
    return net


def loss(net: nn.Module, batch: Part) -> Loss:
    return Loss(-LENGTH * net(batch["direction"]).sum(), len(batch["direction"]), 0)


def shards(config: RunConfig) -> Sequence[Shard]:
    signs = torch.where(coins(config), 1.0, -1.0)
    rows = (signs[:, None] * directions(config)).split(1)
    return [Shard(*({"direction": row} for _ in range(3))) for row in rows]


ONE_STEP = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0, "clip": 0.0, "batch_size": 1}

TASKS = {
    "canaries": Task(
        summary="canary clients",
        metric="loss",
        unit="examples",
        model=model,
        loss=loss,
        shards=shards,
        defaults={**ONE_STEP, "local_steps": 1},
    )
}
