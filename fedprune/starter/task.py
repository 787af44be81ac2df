"""What is learned: the model, the data and the loss. Yours to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedprune.tasks.losses import classification_loss
from fedprune.tasks.task import Shard, Task


def network(config: Any) -> nn.Module:
    """The dense model, from ``images`` (B, 1, 8, 8) to (B, 10). YOUR MODEL goes here."""
    del config
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def shards(config: Any) -> list[Shard]:
    """The data of each client of a simulation. YOUR DATA goes here."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(config.seed))
    dealt = order.tensor_split(config.clients)
    return [in_three(found.images[rows], found.target[rows]) for rows in dealt]


def local(folder: Path, config: Any) -> Shard:
    """The data of a real device, from the folder that its node config names (``data``)."""
    del config
    found = np.load(folder / "data.npz")
    return in_three(found["images"], found["labels"])


def in_three(images: Any, labels: Any) -> Shard:
    """Images (N, 8, 8) of 0 to 16 and their labels (N,): a fifth each to validate and to test."""
    rows: dict[str, Tensor] = {
        "images": torch.as_tensor(images, dtype=torch.float32).unsqueeze(1) / 16,
        "labels": torch.as_tensor(labels, dtype=torch.int64),
    }
    fifth = max(1, len(labels) // 5)
    parts = [slice(2 * fifth, None), slice(fifth, 2 * fifth), slice(0, fifth)]
    return Shard(*({name: t[part] for name, t in rows.items()} for part in parts))


TASK = Task(
    summary="handwritten digits, 8 by 8",
    metric="accuracy",
    unit="examples",
    model=network,
    loss=classification_loss,
    shards=shards,
    local=local,
    output=("3",),
)
"""`output` names the layer of outputs, which is not pruned. Of `loss` and of all else that a task
can say: docs/extending.md of fedprune."""
