"""What is learned: a model, a loss over batches, and one private shard per partition.

A new task is a `Task` value, no subclass: see ``docs/extending.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fedprune.config import RunConfig

Part = dict[str, Tensor]
"""Examples: tensors that share their first dimension, one row an example."""


@dataclass(frozen=True)
class Loss:
    """Sums over one batch: they add up over batches, shards and clients.

    Attributes:
        total: scalar tensor with gradient, the loss summed over the counted labels.
        count: labels counted (tokens of a language model, examples of a classifier).
        correct: labels whose most probable class is the right one.
    """

    total: Tensor
    count: int
    correct: int


@dataclass(frozen=True)
class Shard:
    """One partition's private data, cut in three."""

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Task:
    """A model and what it learns.

    Attributes:
        summary: one line for ``--list``.
        metric: what people read: "perplexity" (lower is better) or "accuracy".
        unit: what `Loss.count` counts; clients weigh in a mean by it.
        model: builds the dense model; torch's global generator is seeded around the call.
        loss: sums over one batch, under the model's current mode.
        shards: every partition's shard, in partition order, under a resolved configuration.
        labels: how many labels a part holds, in `unit`.
        output: modules whose weights are the head of output: not prunable unless asked.
        splits: split name to the data column it works on ("" where it needs none).
        defaults: configuration keys this task sets unless the user does.
        folder: whether `shards` reads the configuration's `data` folder.
        local: the shard of a real device from its own folder; None: not for devices.
        tokenizer: a Hugging Face tokenizer to save beside the model, where there is one.
    """

    summary: str
    metric: str
    unit: str
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Part], Loss]
    shards: Callable[[RunConfig], Sequence[Shard]]
    labels: Callable[[Part], int] = field(default=lambda part: examples(part))
    output: tuple[str, ...] = ()
    splits: Mapping[str, str] = field(default_factory=lambda: {"iid": ""})
    defaults: Mapping[str, Any] = field(default_factory=dict)
    folder: bool = False
    local: Callable[[Path, int], Shard] | None = None
    tokenizer: Callable[[], Any] | None = None


def examples(part: Part) -> int:
    """How many examples a part holds."""
    return next(iter(part.values())).shape[0]


def batches(part: Part, size: int, order: Tensor | None = None) -> Iterator[Part]:
    """The part in batches of at most `size` rows, in the given order of rows."""
    rows = torch.arange(examples(part)) if order is None else order
    for chosen in rows.split(size):
        yield {name: t[chosen] for name, t in part.items()}


def classification_loss(model: nn.Module, batch: Part) -> Loss:
    """Cross-entropy of ``model(images) -> (B, classes)`` against ``labels`` (B,)."""
    logits = model(batch["images"])
    labels = batch["labels"]
    total = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return Loss(total, labels.numel(), int((logits.argmax(-1) == labels).sum()))


def next_token_loss(model: nn.Module, batch: Part) -> Loss:
    """Cross-entropy of a causal model's ``logits`` (B, T, V) against ``labels`` (B, T).

    `labels` are already shifted: label t is the token after input t. Those of -100 do not count.
    """
    logits = model(input_ids=batch["inputs"]).logits
    labels = batch["labels"]
    counted = labels != -100
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return Loss(total, int(counted.sum()), int(((logits.argmax(-1) == labels) & counted).sum()))


def label_tokens(part: Part) -> int:
    """Labels that count in a language model's part: what its clients weigh by."""
    return int((part["labels"] != -100).sum())
