"""Tasks on a user's own rows (``--data``): classify, model, fill in or rewrite texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedprune.options.refusal import counted
from fedprune.tasks.dealt_rows import ALL_ROWS, population, read_on_device, shares
from fedprune.tasks.labelled import (
    DEFAULTS_OF_ROWS,
    SPLITS_OF_ROWS,
    USUAL,
    classifier,
    distinct,
    labelled_task,
    numbered,
    one_text,
)
from fedprune.tasks.language import (
    FEWEST_SYMBOLS,
    blank_row,
    cut_streams,
    length_of,
    next_token_task,
    text_rows,
    token_task,
)
from fedprune.tasks.losses import class_loss, f1_names, label_tokens
from fedprune.tasks.masked import masked_shards, masked_token_loss
from fedprune.tasks.options import Data
from fedprune.tasks.owners import Population
from fedprune.tasks.restore import GENERATION_SUMS, generation_sums, pair_rows, text_to_text_loss
from fedprune.tasks.splits import cut_later
from fedprune.tasks.tables import cached_by_config, rows_with_text
from fedprune.tasks.task import Loss, Part, Shard

LABELLED_SPLITS = {**SPLITS_OF_ROWS, "dirichlet": "label", "shards": "label"}


def streams(config: Data) -> list[str]:
    """The texts of every partition, a line each, as one stream."""
    columns = rows_with_text(config)
    sizes = list(map(_symbols, columns["text"]))
    dealt = shares(config, columns, SPLITS_OF_ROWS, sizes, FEWEST_SYMBOLS)
    joined = ["".join(f"{columns['text'][i]}\n" for i in own) for own in dealt]
    shortest = min(map(len, joined))
    if shortest < FEWEST_SYMBOLS and config.split not in ("natural", ALL_ROWS):
        raise ValueError(
            f"clients={config.clients}: one of them would hold {shortest} characters of text; "
            f"allowed: at least {FEWEST_SYMBOLS} each (fewer clients, or more data)"
        )
    return joined


def _symbols(text: str) -> int:
    """Characters that a row is in a stream: of its text, and the end of its line."""
    return len(text) + 1


def stream_population(config: Data) -> Population:
    """Who the clients are where their rows are one stream."""
    return population(config, _symbols, FEWEST_SYMBOLS)


def stream_shards(config: Data) -> Sequence[Shard]:
    """Windows over every partition's rows in their order, cut by time."""
    shards = cut_streams(streams(config), config, "causal")
    mute = sum(not label_tokens(shard.train) for shard in shards)
    if mute:
        raise ValueError(
            f"model={config.model!r}: {counted(mute, 'client has', 'clients have')} a text of "
            f"one token: nothing follows it; "
            "allowed: --small-owners drop, or group"
        )
    return shards


def hidden_shards(config: Data) -> Sequence[Shard]:
    """The same with symbols hidden."""
    return masked_shards(streams(config), config)


def pair_shards(config: Data) -> Sequence[Shard]:
    """Pairs of texts, cut at random."""
    columns = rows_with_text(config, "target")
    pairs = list(zip(columns["text"], columns["target"], strict=True))
    rows = pair_rows(pairs, config, length_of(config))
    return cut_later(rows, shares(config, columns, SPLITS_OF_ROWS), config)


@cached_by_config
def names_of_classes(config: Data) -> list[str]:
    """The configuration's class names, or else the distinct labels of the file, sorted as texts.

    In a simulation all know the labels of the whole file.

    Raises:
        ValueError: as `distinct`.
    """
    if config.class_names:
        return list(config.class_names)
    labels = rows_with_text(config, "label")["label"]
    return distinct(labels, f"label-column={config.label_column or 'label'!r}")


def labelled_shards(config: Data) -> Sequence[Shard]:
    """Texts, cut and padded to one length, and their classes; cut at random."""
    columns = rows_with_text(config, "label")
    index = numbered(names_of_classes(config), columns["label"], "label")
    labels = torch.tensor([index[name] for name in columns["label"]])
    rows = {**text_rows(columns["text"], config, USUAL), "labels": labels}
    return cut_later(rows, shares(config, columns, LABELLED_SPLITS), config)


def text_class_loss(model: nn.Module, batch: Part) -> Loss:
    """Cross-entropy of a sequence classifier's logits (B, classes) against ``labels`` (B,)."""
    out = model(input_ids=batch["inputs"], attention_mask=batch["attention"])
    return class_loss(out.logits, batch["labels"])


def _text_classifier(config: Data) -> nn.Module:
    model: Any = classifier(config, names_of_classes(config))
    if model.config.problem_type:  # a folder's may be another one
        model.config.problem_type = "single_label_classification"
    return model  # type: ignore[no-any-return]


CLASSIFICATION = labelled_task(
    "classify",
    summary="classes of texts, from --data",
    metric="accuracy",
    model=_text_classifier,
    loss=text_class_loss,
    shards=labelled_shards,
    classes=lambda config: len(names_of_classes(config)),
    class_names=names_of_classes,
    dummy=one_text,
    extra=lambda config: f1_names(len(names_of_classes(config))),
    splits=LABELLED_SPLITS,
    local=read_on_device(labelled_shards, classes=True),
)

LANGUAGE = next_token_task(
    summary="next symbol of texts, from --data",
    shards=stream_shards,
    columns=("text", "client"),
    population=stream_population,
    splits=SPLITS_OF_ROWS,
    defaults=DEFAULTS_OF_ROWS,
    folder=True,
    local=read_on_device(stream_shards),
)

MASKED = token_task(
    "masked",
    "bert",
    summary="hidden symbols of texts, from --data",
    loss=masked_token_loss,
    shards=hidden_shards,
    columns=("text", "client"),
    population=stream_population,
    dummy=lambda config: blank_row(length_of(config)),
    splits=SPLITS_OF_ROWS,
    defaults=DEFAULTS_OF_ROWS,
    folder=True,
    local=read_on_device(hidden_shards),
)

TEXT_TO_TEXT = token_task(
    "seq2seq",
    "t5",
    summary="a text from another, from --data",
    loss=text_to_text_loss,
    shards=pair_shards,
    columns=("text", "target", "client"),
    population=population,
    dummy=lambda config: blank_row(length_of(config)),
    extra=("bytes",),
    test_sums=generation_sums,
    test_sum_names=GENERATION_SUMS,
    splits=SPLITS_OF_ROWS,
    defaults=DEFAULTS_OF_ROWS,
    folder=True,
    local=read_on_device(pair_shards),
)
