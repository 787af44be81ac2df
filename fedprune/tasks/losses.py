"""Losses of classes and of tokens, with the sums that their metrics are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprune.tasks.task import Loss, Part, count_labels
from fedprune.tensors.named import wide

MOST_CLASSES = 100
"""With more classes than this, what macro F1 needs is not counted: three sums a class."""


def f1_names(classes: int) -> tuple[str, ...]:
    """Names of the sums that macro F1 is made from; none, if there are too many classes."""
    if classes > MOST_CLASSES:
        return ()
    return tuple(f"{kind}_{c}" for kind in ("tp", "fp", "fn") for c in range(classes))


def class_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Cross-entropy of logits (B, classes) against labels (B,), with what macro F1 needs.

    Labels of -100 do not count.
    """
    logits, classes = wide(logits), logits.shape[-1]
    logs = nn.functional.log_softmax(logits, -1)

    def counts() -> dict[str, float]:
        guess, counted = logits.argmax(-1), labels != -100
        guess, there = guess[counted], labels[counted]
        hits = torch.bincount(there[guess == there], minlength=classes)
        wrong = torch.bincount(guess, minlength=classes) - hits
        missed = torch.bincount(there, minlength=classes) - hits
        sums = torch.cat([hits, wrong, missed]).tolist()
        return dict(zip(f1_names(classes), sums, strict=True))

    return Loss(
        nn.functional.nll_loss(logs, labels, reduction="sum"),
        lambda: count_labels(labels),
        lambda: int((logits.argmax(-1) == labels).sum()),
        lambda: nn.functional.nll_loss(logs, labels, reduction="none"),
        counts if classes <= MOST_CLASSES else {},
        logits,
    )


def classification_loss(model: nn.Module, batch: Part) -> Loss:
    """Cross-entropy of ``model(images) -> (B, classes)`` against ``labels`` (B,).

    A model may give them back as ``logits``, an attribute or a key of a dictionary.

    Raises:
        TypeError: it gives back something else.
    """
    output = model(batch["images"])
    found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the model gives back a {type(output).__name__}, and classification_loss reads a "
            "tensor (B, classes), or one named logits; write a loss that takes it out"
        )
    return class_loss(found, batch["labels"])


def next_token_loss(model: nn.Module, batch: Part) -> Loss:
    """Cross-entropy of a causal model's ``logits`` (B, T, V) against ``labels`` (B, T).

    `labels` are already shifted: label t is the token after input t. Those of -100 do not count.
    """
    return token_loss(model(input_ids=batch["inputs"]).logits, batch)


def token_loss(logits: Tensor, batch: Part) -> Loss:
    """Cross-entropy of logits (B, T, V) against the batch's ``labels`` (B, T), -100 left out.

    `each` is summed over a row's labels. Where the batch says how many bytes of text its labels
    stand for, (B, T), or each row, (B,), they are summed too. Where it says which id is the
    unknown symbol, (B,), labels of it are never right, and their own bytes are not summed: what
    they hide was not predicted.
    """
    logits, labels, flat = wide(logits), batch["labels"], batch["labels"].flatten()
    # Together these two are torch's cross_entropy; apart, the logarithms serve both sums.
    logs = nn.functional.log_softmax(logits.flatten(0, 1), -1)

    def known() -> Tensor:
        where = counted_labels(batch)
        return where & (labels != batch["unknown"].unsqueeze(-1)) if "unknown" in batch else where

    def each() -> Tensor:
        found = nn.functional.nll_loss(logs, flat, ignore_index=-100, reduction="none")
        return found.view(labels.shape).sum(-1)

    def bytes_read() -> dict[str, float]:
        sizes, there = batch["bytes"], known()
        return {"bytes": float((sizes * there if sizes.shape == there.shape else sizes).sum())}

    return Loss(
        nn.functional.nll_loss(logs, flat, ignore_index=-100, reduction="sum"),
        lambda: count_labels(labels),
        lambda: int(((logits.argmax(-1) == labels) & known()).sum()),
        each,
        bytes_read if "bytes" in batch else {},
        logits,
    )


def counted_labels(batch: Part) -> Tensor:
    """Which of a batch's labels count, of their shape: all but those of -100."""
    return batch["labels"] != -100


def label_tokens(part: Part) -> int:
    """Labels that count in a language model's part: what its clients weigh by."""
    return count_labels(part["labels"])
