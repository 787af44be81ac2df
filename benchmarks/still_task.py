"""A task for `engine.py`: a model of any size of which a step of training moves a corner.

    python simulations/run.py --plugin benchmarks/still_task.py --task still-1000000

Its loss looks at one row through a head of a thousand weights. Everything else gets no gradient
and stays as it was sent, so that a phase costs what moving and adding up the model costs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprune.config import RunConfig
from fedprune.tasks.losses import classification_loss
from fedprune.tasks.task import Part, Shard, Task

SIZES = (10**5, 10**6, 10**7, 10**8)
"""Parameters of the models there are."""

LAYERS = 9


class Still(nn.Module):
    """Exactly `size` weights in a head that works and nine layers that do not."""

    def __init__(self, size: int) -> None:
        super().__init__()
        width = (size - 1000) // 1000 // LAYERS
        self.body = nn.ModuleList(nn.Linear(1000, width, bias=False) for _ in range(LAYERS))
        self.head = nn.Linear(100, 10, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the head alone."""
        logits: Tensor = self.head(images)
        return logits


def part(seed: int) -> Part:
    """One row."""
    gen = torch.Generator().manual_seed(seed)
    return {"images": torch.randn(1, 100, generator=gen), "labels": torch.tensor([seed % 10])}


def shards(config: RunConfig) -> list[Shard]:
    """One row for every client, in each of the three parts."""
    return [Shard(part(p), part(p), part(p)) for p in range(config.clients)]


def task(size: int) -> Task:
    """The task with a model of that size."""
    return Task(
        summary=f"nothing to speak of, with {size:,} parameters",
        metric="accuracy",
        unit="examples",
        model=lambda _config: Still(size),
        loss=classification_loss,
        shards=shards,
        output=("head",),
        defaults={"local_steps": 1, "batch_size": 1},
    )


TASKS = {f"still-{size}": task(size) for size in SIZES}
