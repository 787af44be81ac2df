"""Tasks for `memory.py`: a model of any size, all of whose weights learn, and BERT-base.

    python simulations/run.py --plugin benchmarks/moving_task.py --task moving-1000000
    python simulations/run.py --plugin benchmarks/moving_task.py --task moving-bert-base

Activations are small beside the weights: a step costs what the weights cost.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fedprune.config import RunConfig
from fedprune.tasks.losses import classification_loss
from fedprune.tasks.task import Part, Shard, Task

SIZES = (10**5, 10**6, 5 * 10**6, 2 * 10**7, 8 * 10**7, 11 * 10**7)
"""Parameters of the models there are, about."""

CLASSES = 10
LAYERS = 10


class Moving(nn.Module):
    """Ten square layers and a head, of about `size` weights."""

    def __init__(self, size: int) -> None:
        super().__init__()
        side = int((size / LAYERS) ** 0.5)
        self.side = side
        self.body = nn.ModuleList(nn.Linear(side, side, bias=False) for _ in range(LAYERS))
        self.head = nn.Linear(side, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 8)."""
        hidden = images.repeat(1, self.side // 8 + 1)[:, : self.side]
        for layer in self.body:
            hidden = nn.functional.relu(layer(hidden)) + hidden
        logits: Tensor = self.head(hidden)
        return logits


class Bert(nn.Module):
    """BERT-base from its configuration: 12 blocks, width 768, 30,522 tokens, 109.5 M weights."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        self.inner = BertForSequenceClassification(BertConfig(num_labels=CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of rows (B, 8), as eight tokens each."""
        ids = (images.abs() * 1000).long().clamp(max=30_000)
        logits: Tensor = self.inner(input_ids=ids).logits
        return logits


def part(seed: int, rows: int = 4) -> Part:
    """A few rows."""
    gen = torch.Generator().manual_seed(seed)
    labels = torch.arange(seed, seed + rows) % CLASSES
    return {"images": torch.randn(rows, 8, generator=gen), "labels": labels}


def shards(config: RunConfig) -> list[Shard]:
    """Four rows for every client, in each of the three parts."""
    return [Shard(part(p), part(p), part(p)) for p in range(config.clients)]


def task(size: int) -> Task:
    """The task with a model of that size."""
    return Task(
        summary=f"nothing to speak of, with {size:,} parameters that all learn",
        metric="accuracy",
        unit="examples",
        model=lambda _config: Moving(size),
        loss=classification_loss,
        shards=shards,
        output=("head",),
        classes=lambda _config: CLASSES,
        defaults={
            **{"local_steps": 1, "batch_size": 4, "optimizer": "adamw", "lr": 1e-4},
            **{"rounds": 2, "warmup": 1, "cohort": 2},
        },
    )


def _bert(_config: RunConfig) -> nn.Module:
    return Bert()


BERT = "bert-base"

TASKS = {f"moving-{size}": task(size) for size in SIZES}
TASKS[f"moving-{BERT}"] = replace(task(11 * 10**7), model=_bert, output=("inner.classifier",))
