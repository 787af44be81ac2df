"""What measures are held against: label frequencies alone, and how alike two texts are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedprune.tasks.measures import macro_f1, measures, metric_of
from fedprune.tasks.task import Naive, Part, Task


def naive_of(task: Task) -> Naive | None:
    """How a task's baseline without a model is had; None where it counts no labels."""
    classes, metric = task.classes, task.metric
    if task.naive is not None or classes is None:
        return task.naive
    return Naive(
        classes,
        lambda part, config: label_counts(part, classes(config)),
        lambda train, test, _: baseline_of(metric, train, test),
    )


def label_counts(part: Part, classes: int) -> Tensor:
    """How often each label occurs in a part, (classes,) float64; those of -100 are not counted.

    Raises:
        ValueError: a label is not in 0..classes - 1.
    """
    labels = part["labels"].flatten()
    labels = labels[labels != -100]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels={int(labels.min())} to {int(labels.max())}: not a class; "
            f"allowed: 0 to {classes - 1}"
        )
    return torch.bincount(labels.cpu(), minlength=classes).double()


def baseline_of(metric: str, train: Tensor, test: Tensor) -> dict[str, float]:
    """What is had without a model, from label histograms summed over clients.

    Of likelihoods: each label with its frequency in training, one added to every count (Laplace),
    so that none has probability zero. Of others: the class most frequent in training, always.

    Args:
        metric: `Task.metric`.
        train: (classes,) counts in the training parts.
        test: (classes,) counts in the test parts.

    Returns:
        As `measures`: accuracy and macro_f1, or loss, perplexity and accuracy.
    """
    train, test = train.double(), test.double()
    count = float(test.sum())
    guess = int(train.argmax())
    hits = float(test[guess])
    if not metric_of(metric).likelihood:
        wrong = [count - hits if c == guess else 0.0 for c in range(len(test))]
        right = [hits if c == guess else 0.0 for c in range(len(test))]
        missed = [0.0 if c == guess else n for c, n in enumerate(test.tolist())]
        accuracy = hits / count if count else math.nan
        return {"accuracy": accuracy, "macro_f1": macro_f1(right, wrong, missed)}
    logs = ((train + 1) / (train.sum() + len(train))).log()
    loss = -float((test * logs).sum())
    return measures({"loss": loss, "correct": hits, "count": count}, metric)


def longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, in len(left) * len(right) steps."""
    before = [0] * (len(right) + 1)
    for one in left:
        row = [0]
        for j, other in enumerate(right):
            row.append(before[j] + 1 if one == other else max(before[j + 1], row[j]))
        before = row
    return before[-1]


def rouge_l(written: str, wanted: str) -> float:
    """F1 of the words in the longest common subsequence (Lin 2004, "ROUGE", section 3.1).

    Words are what stands between white space, with their capitals and punctuation: common
    packages drop both, and here they are what is to be restored. Two empty texts are equal: 1.
    """
    left, right = written.split(), wanted.split()
    if not left or not right:
        return float(left == right)
    common = longest_common(left, right)
    # 2 P R / (P + R) with P = common / left and R = common / right
    return 2 * common / (len(left) + len(right))
