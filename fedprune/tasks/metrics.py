"""Metrics from sums that add up over batches, clients and rounds, and what they are held against.

Each metric is a quotient of sums, so the metric of the pooled data is had from added-up parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedprune.tasks.task import Part


def measures(totals: Mapping[str, float]) -> dict[str, float]:
    """The metrics that summed totals allow.

    Args:
        totals: "loss" (nats), "correct" and "count"; and where they were summed "bytes", the
            sums of `fedprune.tasks.task.f1_names`, and the sums of `fedprune.tasks.restore.EXAM`.

    Returns:
        loss (nats a label), perplexity and accuracy (0..1); and as far as there are sums for them
        macro_f1 (0..1), bits_per_byte, exact_match and rouge_l (0..1), of what was written and of
        copying the input. NaN where nothing counted.
    """
    loss = _ratio(totals["loss"], totals["count"])
    found = {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf if loss == loss else math.nan,
        "accuracy": _ratio(totals["correct"], totals["count"]),
    }
    if "tp_0" in totals:
        classes = sum(name.startswith("tp_") for name in totals)
        each = [[totals[f"{kind}_{c}"] for c in range(classes)] for kind in ("tp", "fp", "fn")]
        found["macro_f1"] = macro_f1(*each)
    if "bytes" in totals:
        found["bits_per_byte"] = _ratio(totals["loss"] / math.log(2), totals["bytes"])
    if "examined" in totals:
        found["exact_match"] = _ratio(totals["exact"], totals["examined"])
        found["rouge_l"] = _ratio(totals["rouge_l"], totals["examined"])
        # What the input itself, unchanged, would have reached.
        found["exact_match_of_copying"] = _ratio(totals["copied_exact"], totals["examined"])
        found["rouge_l_of_copying"] = _ratio(totals["copied_rouge_l"], totals["examined"])
    return found


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def macro_f1(hits: Sequence[float], wrong: Sequence[float], missed: Sequence[float]) -> float:
    """The mean of the classes' F1, over those that occur among labels or guesses.

    Args:
        hits: true positives of each class.
        wrong: false positives of each class.
        missed: false negatives of each class.

    Returns:
        As scikit-learn's ``f1_score(average="macro")``; NaN where no class occurs.
    """
    rows = zip(hits, wrong, missed, strict=True)
    each = [2 * h / (2 * h + w + m) for h, w, m in rows if h + w + m > 0]
    return _ratio(sum(each), len(each))


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


def baseline_of(
    metric: str, train: Tensor, test: Tensor, test_bytes: float | None = None
) -> dict[str, float]:
    """What is had without a model, from label histograms summed over clients.

    "accuracy": the class most frequent in training, always. "perplexity": each label with its
    frequency in training, one added to every count (Laplace), so that none has probability zero.

    Args:
        metric: `Task.metric`.
        train: (classes,) counts in the training parts.
        test: (classes,) counts in the test parts.
        test_bytes: bytes that the labels of the test parts stand for, where they were summed.

    Returns:
        As `measures`: accuracy and macro_f1, or loss, perplexity, accuracy and bits_per_byte.
    """
    train, test = train.double(), test.double()
    count = float(test.sum())
    guess = int(train.argmax())
    hits = float(test[guess])
    if metric != "perplexity":
        wrong = [count - hits if c == guess else 0.0 for c in range(len(test))]
        right = [hits if c == guess else 0.0 for c in range(len(test))]
        missed = [0.0 if c == guess else n for c, n in enumerate(test.tolist())]
        return {"accuracy": _ratio(hits, count), "macro_f1": macro_f1(right, wrong, missed)}
    logs = ((train + 1) / (train.sum() + len(train))).log()
    totals = {"loss": -float((test * logs).sum()), "correct": hits, "count": count}
    return measures(totals if test_bytes is None else {**totals, "bytes": test_bytes})


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
