"""Any number of labels for a text (``--data``): one yes or no each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.options.refusal import counted
from fedprune.tasks.cells import as_list, cell_text
from fedprune.tasks.dealt_rows import ALL_ROWS, read_on_device, shares
from fedprune.tasks.labelled import (
    SPLITS_OF_ROWS,
    USUAL,
    classifier,
    labelled_task,
    numbered,
    one_text,
)
from fedprune.tasks.language import text_rows
from fedprune.tasks.losses import f1_names
from fedprune.tasks.measures import f1
from fedprune.tasks.options import Data
from fedprune.tasks.splits import cut_later
from fedprune.tasks.tables import cached_by_config, rows_with_text
from fedprune.tasks.task import Loss, Naive, Part, Shard
from fedprune.tensors.named import wide

SEPARATORS = ("|", ";", ",")
"""What parts the labels of a text column: the first of these that is anywhere in it."""

_SUMS = ("hits", "wrong", "missed")
"""Labels that were guessed and are there, guessed and are not, and not guessed but there."""


def read_labels(cell: Any) -> list[str] | str:
    """A cell of labels: a list (also written as one, ``["a", "b"]``), or a text of some."""
    listed = isinstance(cell, list) or (isinstance(cell, str) and cell.startswith("["))
    return as_list(cell) if listed else cell_text(cell)


def label_sets(
    cells: Sequence[list[str] | str], option: str, *, several: bool = True
) -> list[list[str]]:
    """The labels of every row, sorted, from what `read_labels` read.

    Raises:
        ValueError: `several`, and no row has more or less than one label: these are classes.
    """
    texts = [cell for cell in cells if isinstance(cell, str)]
    separator = next((s for s in SEPARATORS if any(s in text for text in texts)), "|")
    parts = (cell.split(separator) if isinstance(cell, str) else cell for cell in cells)
    found = [sorted({label.strip() for label in row} - {""}) for row in parts]
    if several and all(len(labels) == 1 for labels in found):
        raise ValueError(
            f"{option}: every row has one label; allowed: --task text-classification, lists, or "
            f"labels parted by {' or '.join(SEPARATORS)}"
        )
    return found


def _option(config: Data) -> str:
    return f"label-column={config.label_column or 'label'!r}"


def _columns(config: Data) -> dict[str, list[Any]]:
    columns = rows_with_text(config, "label", read={"label": read_labels}, blank=("label",))
    several = config.split != ALL_ROWS  # one device may have rows of one label each
    return {**columns, "label": label_sets(columns["label"], _option(config), several=several)}


@cached_by_config
def names_of_labels(config: Data) -> list[str]:
    """The configuration's class names, or the distinct labels of the file, sorted as texts.

    Raises:
        ValueError: there are fewer than two.
    """
    if config.class_names:
        return list(config.class_names)
    names = sorted({label for labels in _columns(config)["label"] for label in labels})
    if len(names) < 2:
        raise ValueError(
            f"{_option(config)}: {counted(len(names), 'label')} in all; allowed: at least two"
        )
    return names


def _shards(config: Data) -> Sequence[Shard]:
    """Texts, cut and padded to one length, and a 1 or 0 for every label; cut at random."""
    columns = _columns(config)
    index = numbered(names_of_labels(config), {n for own in columns["label"] for n in own}, "label")
    there = torch.zeros(len(columns["text"]), len(index))
    for row, labels in zip(there, columns["label"], strict=True):
        row[[index[name] for name in labels]] = 1.0
    rows = {**text_rows(columns["text"], config, USUAL), "labels": there}
    return cut_later(rows, shares(config, columns, SPLITS_OF_ROWS), config)


def labels_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Binary cross-entropy of logits (B, labels) against labels of 1 or 0 of the same shape.

    Of an example it is the mean over labels, as in transformers. A label is guessed where its
    logit is above 0; an example is right where all of its labels are.
    """
    logits = wide(logits)
    each = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    guess, there = logits > 0, labels > 0
    counts = [(guess & there).sum(0), (guess & ~there).sum(0), (~guess & there).sum(0)]
    extra = {name: float(count.sum()) for name, count in zip(_SUMS, counts, strict=True)}
    names = f1_names(labels.shape[-1])
    extra |= dict(zip(names, torch.cat(counts).tolist(), strict=False)) if names else {}
    right = int((guess == there).all(-1).sum())
    return Loss(each.sum(), len(labels), right, each, extra)


def text_labels_loss(model: nn.Module, batch: Part) -> Loss:
    """`labels_loss` of a sequence classifier."""
    out = model(input_ids=batch["inputs"], attention_mask=batch["attention"])
    return labels_loss(out.logits, batch["labels"])


def _blank(config: Data) -> Part:
    return {**one_text(config), "labels": torch.zeros(1, len(names_of_labels(config)))}


def _sums(part: Part, _: Data) -> Tensor:
    labels = part["labels"].double()
    return torch.cat([torch.tensor([len(labels)], dtype=torch.float64), labels.sum(0)])


def frequent_labels_alone(train: Tensor, test: Tensor) -> Mapping[str, float]:
    """What frequencies reach: the most frequent label, and all that most examples have, always.

    Args:
        train: the number of examples, then of those with each label, in the training parts.
        test: the same of the test parts.

    Returns:
        micro_f1, macro_f1, and the loss of each label's frequency in training (Laplace).
    """
    seen, n, there = train[1:], float(test[0]), test[1:]
    if not n:
        return {}
    chosen = (seen == seen.max()) | (seen > train[0] / 2)
    likely = (seen + 1) / (train[0] + 2)
    loss = -(there * likely.log() + (n - there) * (1 - likely).log()).mean() / n
    hits, wrong, missed = there[chosen], n - there[chosen], there[~chosen]
    micro = f1(float(hits.sum()), float(wrong.sum()), float(missed.sum()))
    each = [f1(float(h), float(w), 0.0) for h, w in zip(hits, wrong, strict=True)]
    counted = len(each) + int((missed > 0).sum())
    macro = sum(each) / counted if counted else math.nan
    return {"loss": float(loss), "micro_f1": micro, "macro_f1": macro}


MULTI_LABEL = labelled_task(
    "classify",
    summary="any number of labels for a text, from --data",
    metric="micro_f1",
    model=lambda config: classifier(config, names_of_labels(config), "multi_label_classification"),
    loss=text_labels_loss,
    shards=_shards,
    class_names=names_of_labels,
    naive=Naive(
        lambda config: 1 + len(names_of_labels(config)),
        _sums,
        lambda train, test, _: frequent_labels_alone(train, test),
    ),
    dummy=_blank,
    extra=lambda config: (*_SUMS, *f1_names(len(names_of_labels(config)))),
    local=read_on_device(_shards, classes=True),
)
