"""Numbers from texts (``--data``): least squares on standardised labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.tasks.cells import as_number
from fedprune.tasks.dealt_rows import read_on_device, shares
from fedprune.tasks.labelled import SPLITS_OF_ROWS, USUAL, classifier, labelled_task, one_text
from fedprune.tasks.language import text_rows
from fedprune.tasks.options import Data
from fedprune.tasks.rescaling import Scaling, rescaled, unfolded
from fedprune.tasks.splits import cut_later
from fedprune.tasks.tables import cached_by_config, rows_with_text
from fedprune.tasks.task import Loss, Naive, Part, Shard
from fedprune.tasks.zoo import heads_of

_SUMS = (
    "squared",
    "absolute",
    "y_squares",
    "y_shifted_squares",
    "guess_squares",
    "guess_shifted_squares",
)
"""Sums of a regression over examples: (guess - y)², |guess - y|, y², (y + 1)², guess² and
(guess + 1)². From the last four follow sums of y and of guesses without a sum that is negative."""


def value_sums(guess: Tensor, label: Tensor) -> dict[str, float]:
    """The sums named in `_SUMS`, of guesses and labels (B,)."""
    guess, label = guess.detach().double(), label.double()
    apart = guess - label
    terms = (apart**2, apart.abs(), label**2, (label + 1) ** 2, guess**2, (guess + 1) ** 2)
    return {name: float(term.sum()) for name, term in zip(_SUMS, terms, strict=True)}


AS_THEY_ARE = Scaling(0.0, 1.0)
"""Of labels that nobody has scaled."""


_LARGEST = 1e30
_SMALLEST = 1e-30
_FINEST = 6e-6
"""A model gives float32 numbers: their step at the mean is 1 % of a spread so small beside it."""


def scaling_of(labels: Sequence[float]) -> Scaling:
    """Mean and standard deviation of labels.

    Raises:
        ValueError: they are all the same, or float32 cannot say them.
    """
    if (largest := max(map(abs, labels))) > _LARGEST:
        raise ValueError(f"{largest:g} is too large for float32; allowed: up to {_LARGEST:g}")
    centre = math.fsum(labels) / len(labels)
    spread = math.sqrt(math.fsum((y - centre) ** 2 for y in labels) / len(labels))
    if not spread > 1e-12 * abs(centre):
        raise ValueError("every row has the same label; allowed: labels that differ")
    if spread < _SMALLEST:
        raise ValueError(
            f"labels differ by {spread:.2g} only, too little for float32; "
            f"allowed: a standard deviation from {_SMALLEST:g}"
        )
    if spread < _FINEST * abs(centre):
        raise ValueError(
            f"labels of mean {centre:.6g} and standard deviation {spread:.2g} are one number or "
            "a few in float32; allowed: the same labels less their mean"
        )
    return Scaling(centre, spread)


@cached_by_config
def scaling(config: Data) -> Scaling:
    """That of all labels in the file: in a simulation all know them; without a file as they are.

    Raises:
        ValueError: a label is no number, with its row, or they are all the same.
    """
    if not config.data:
        return AS_THEY_ARE
    labels = _columns(config)["label"]
    try:
        return scaling_of(labels)
    except ValueError as error:
        raise ValueError(f"label-column={config.label_column or 'label'!r}: {error}") from None


def _columns(config: Data) -> dict[str, list[Any]]:
    return rows_with_text(config, "label", read={"label": as_number})


def valued_shards(config: Data) -> Sequence[Shard]:
    """Texts, cut and padded to one length, and their standardised labels; cut at random."""
    return _valued(config, scaling(config))


def local_values(path: Path, config: Data) -> Shard:
    """A device's own shard: its rows with their labels as they are, which all devices agree on.

    Raises:
        ValueError: the server has read rows, by whose labels its model is scaled.
    """
    if config.data:
        raise ValueError(
            f"data={config.data!r}: a device cannot see by which labels the server scaled; "
            "allowed: no data at the server, and labels about 0 to 1 apart"
        )
    return read_on_device(lambda own: _valued(own, AS_THEY_ARE))(path, config)


def _valued(config: Data, known: Scaling) -> Sequence[Shard]:
    columns = _columns(config)
    values = torch.tensor(columns["label"], dtype=torch.float64)
    rows = {
        **text_rows(columns["text"], config, USUAL),
        "labels": ((values - known.centre) / known.spread).float(),
        "scaling": torch.tensor([known]).repeat(len(values), 1),
    }
    return cut_later(rows, shares(config, columns, SPLITS_OF_ROWS), config)


def value_loss(model: nn.Module, batch: Part) -> Loss:
    """Squared error of the model's number for a text, both standardised, (B,).

    The batch's ``scaling`` (B, 2) holds centre and spread of the labels.
    """
    out = model(input_ids=batch["inputs"], attention_mask=batch["attention"])
    centre, spread = batch["scaling"].unbind(-1)
    guess = (out.logits.squeeze(-1).float() - centre) / spread
    each = (guess - batch["labels"]) ** 2
    return Loss(each.sum(), len(each), 0, each, value_sums(guess, batch["labels"]))


def regressor(config: Data) -> nn.Module:
    """A sequence classifier with one output, in units of the labels.

    Where the data is not there, as when a finished model is loaded, it is built for labels that
    are standardised already: what is loaded brings its own centre and spread.
    """
    model = classifier(config, (config.label_column or "label",))
    trained = model.config.problem_type == "regression"  # as a folder says whose head it brings
    model.config.problem_type = "regression"
    try:
        known = scaling(config)
    except FileNotFoundError:
        known = AS_THEY_ARE
    (head,) = heads_of(model)
    made = rescaled(model, head, known)
    return unfolded(made, head) if trained else made


def one_value(config: Data) -> Part:
    """One row of the first id, of the mean label."""
    text = one_text(config)
    labels, unit = torch.zeros(1), torch.tensor([[0.0, 1.0]])
    return {**text, "labels": labels, "scaling": unit}


def _sums(part: Part, _: Data) -> Tensor:
    labels = part["labels"].double()
    return torch.stack([torch.ones_like(labels).sum(), labels.sum(), (labels**2).sum()])


def mean_alone(train: Tensor, test: Tensor, spread: float) -> Mapping[str, float]:
    """What the mean of the training labels reaches on test.

    Args:
        train: number of labels, their sum and the sum of their squares, standardised.
        test: the same of the test parts.
        spread: standard deviation that they were standardised by.

    Returns:
        loss (of standardised labels), mse, rmse (in units of the labels) and r2.
    """
    (n, total, squares), mean = test.tolist(), float(train[1] / train[0])
    if not n:
        return {}
    loss = max(0.0, squares - 2 * mean * total + n * mean**2) / n
    variance = squares / n - (total / n) ** 2
    r2 = 1 - loss / variance if variance > 0 else math.nan
    return {"loss": loss, "mse": spread**2 * loss, "rmse": spread * math.sqrt(loss), "r2": r2}


REGRESSION = labelled_task(
    "classify",
    summary="a number for a text, from --data",
    metric="rmse",
    model=regressor,
    loss=value_loss,
    shards=valued_shards,
    naive=Naive(
        lambda _: 3,
        _sums,
        lambda train, test, config: mean_alone(train, test, scaling(config).spread),
    ),
    dummy=one_value,
    extra=_SUMS,
    local=local_values,
    scale=lambda config: scaling(config).spread,
)
