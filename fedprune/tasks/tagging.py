"""A tag for every word (``--data``): names, parts of speech."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.options.refusal import counted as so_many
from fedprune.tasks.cells import as_list
from fedprune.tasks.coverage import check_known, tell
from fedprune.tasks.dealt_rows import population, read_on_device, shares
from fedprune.tasks.labelled import (
    DEFAULTS_OF_ROWS,
    SPLITS_OF_ROWS,
    USUAL,
    classifier,
    labelled_task,
    numbered,
)
from fedprune.tasks.language import blank_row, length_of
from fedprune.tasks.losses import counted_labels, label_tokens, token_loss
from fedprune.tasks.metrics import baseline_of, label_counts
from fedprune.tasks.options import Data
from fedprune.tasks.splits import cut_later
from fedprune.tasks.tables import cached_by_config, rows_with_text
from fedprune.tasks.task import Loss, Naive, Part, Shard
from fedprune.tasks.token_rows import Rows, token_rows
from fedprune.tasks.tokenization import Symbols, symbols_of

_SUMS = ("entities_right", "entities_found", "entities")
"""Entities that were found as they are, that were found, and that are there."""


def _columns(config: Data) -> dict[str, list[Any]]:
    """Words and tags of every row, as many of one as of the other."""
    columns = rows_with_text(config, "label", read={"text": as_list, "label": as_list})
    for i, (words, tags) in enumerate(zip(columns["text"], columns["label"], strict=True), 1):
        if len(words) != len(tags):
            raise ValueError(
                f"data={config.data!r}: sentence {i} has {so_many(len(words), 'word')} and "
                f"{so_many(len(tags), 'tag')}; "
                "allowed: as many of one as of the other"
            )
        if not all(word.strip() for word in words):
            raise ValueError(
                f"data={config.data!r}: sentence {i} has an empty word; allowed: words with letters"
            )
    return columns


@cached_by_config
def names_of_tags(config: Data) -> list[str]:
    """The configuration's class names, or the distinct tags of the file, sorted as texts.

    Raises:
        ValueError: there is only one.
    """
    if config.class_names:
        return list(config.class_names)
    names = sorted({tag for tags in _columns(config)["label"] for tag in tags})
    if len(names) < 2:
        raise ValueError(
            f"label-column={config.label_column or 'tags'!r}: every word has the same tag; "
            "allowed: at least two"
        )
    return names


def tagged_rows(
    symbols: Symbols, words: Sequence[Sequence[str]], tags: Sequence[Sequence[int]], length: int
) -> tuple[Rows, Tensor]:
    """One row a sentence: words with single spaces between them, as tokens, and labels.

    A word's tag is the label of its first token; its other tokens, marks and padding have none
    (-100). Sentences that are too long are cut at the end. Labels are (N, length).
    """
    read = token_rows(symbols, [" ".join(row) for row in words], length)
    labels = torch.full(read.ids.shape, -100)
    for row, own, its_tags, spans in zip(labels, words, tags, read.spans, strict=True):
        for place, word in _first_tokens(own, spans.tolist()):
            row[place] = its_tags[word]
    return read, labels


def _first_tokens(words: Sequence[str], spans: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Place of the first token of every word that has one, and which word it is."""
    # Of every character of the text, the word that it is in; of a space none.
    at = [i for n, word in enumerate(words) for i in (*[n] * len(word), -1)]
    found: dict[int, int] = {}
    for place, (start, end) in enumerate(spans):
        # By its last character: some tokenizers count the space before a word to its first token.
        if end > start and at[end - 1] >= 0:
            found.setdefault(at[end - 1], place)
    return [(place, word) for word, place in found.items()]


def _shards(config: Data) -> Sequence[Shard]:
    """Sentences and the tags of their words; cut at random."""
    columns = _columns(config)
    index = numbered(names_of_tags(config), {t for own in columns["label"] for t in own}, "tag")
    tags = [[index[tag] for tag in row] for row in columns["label"]]
    symbols = symbols_of(config, "tag")
    read, labels = tagged_rows(symbols, columns["text"], tags, length_of(config, USUAL))
    check_known(config.model, [read.coverage])
    tell(config, [read.coverage])
    rows = {"inputs": read.ids, "attention": read.attention, "labels": labels}
    return cut_later(rows, shares(config, columns, SPLITS_OF_ROWS), config)


Entity = tuple[str, int, int]
"""Kind, place of the first word, place after the last."""

ENDS, BEGINS = "ESLU", "BSUO"
"""Prefixes after which no entity goes on, and at which none does."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities that tags say, by the rules of conlleval (Tjong Kim Sang and Buchholz 2000).

    BIO in both of its kinds and BIOES: an entity begins at B and S, and where an I or E does not
    continue one of its kind. L and U are E and S by other names. O is none. A tag without a prefix
    is an entity of one word.
    """
    found: set[Entity] = set()
    start, (last, kind) = -1, ("O", "")
    for i, (prefix, its_kind) in enumerate([*map(tag_parts, tags), ("O", "")]):
        if start >= 0 and (last in ENDS or prefix in BEGINS or its_kind != kind):
            found.add((kind, start, i))
            start = -1
        if prefix != "O" and start < 0:
            start = i
        last, kind = prefix, its_kind
    return found


def tag_parts(tag: str) -> tuple[str, str]:
    """Prefix and kind of a tag: "B" and "PER" of B-PER, "O" and "" of O, "S" of one without."""
    prefix, _, kind = tag.partition("-")
    return (prefix, kind) if prefix in {*"BIESLUO"} else ("S", tag)


def tag_loss(model: nn.Module, batch: Part) -> Loss:
    """Cross-entropy of a token classifier's logits (B, T, tags), and the entities of a batch.

    The names of the tags are those of the model's configuration.
    """
    logits = model(input_ids=batch["inputs"], attention_mask=batch["attention"]).logits
    settings: Any = model.config
    found = token_loss(logits, batch)
    return Loss(
        found.total,
        lambda: found.count,
        lambda: found.correct,
        lambda: found.each,
        lambda: entity_sums(logits.argmax(-1), batch, settings.id2label),
        logits,
    )


def entity_sums(guess: Tensor, batch: Part, names: Mapping[int, str]) -> dict[str, float]:
    """The sums named in `_SUMS`, of guesses (B, T) for the batch's labels."""
    right = found = there = 0
    for ids, labels, where in zip(guess, batch["labels"], counted_labels(batch), strict=True):
        said, true = (entities([names[i] for i in row[where].tolist()]) for row in (ids, labels))
        right, found, there = right + len(said & true), found + len(said), there + len(true)
    return dict(zip(_SUMS, map(float, (right, found, there)), strict=True))


def frequent_tag_alone(train: Tensor, test: Tensor, names: Sequence[str]) -> dict[str, float]:
    """What the most frequent tag reaches; where it is O, it finds no entity."""
    found = {"accuracy": baseline_of("accuracy", train, test)["accuracy"]}
    there = sum(
        n for n, name in zip(test.tolist(), names, strict=True) if tag_parts(name)[0] != "O"
    )
    if tag_parts(names[int(train.argmax())])[0] == "O" and there:
        found["entity_f1"] = 0.0
    return found


TAGGING = labelled_task(
    "tag",
    summary="a tag for every word, from --data",
    metric="entity_f1",
    unit="words",
    model=lambda config: classifier(config, names_of_tags(config), purpose="tag"),
    loss=tag_loss,
    shards=_shards,
    labels=label_tokens,
    classes=lambda config: len(names_of_tags(config)),
    class_names=names_of_tags,
    naive=Naive(
        lambda config: len(names_of_tags(config)),
        lambda part, config: label_counts(part, len(names_of_tags(config))),
        lambda train, test, config: frequent_tag_alone(train, test, names_of_tags(config)),
    ),
    dummy=lambda config: blank_row(length_of(config, USUAL)),
    extra=_SUMS,
    population=lambda config: population(config, read=as_list),
    defaults={**DEFAULTS_OF_ROWS, "text_column": "tokens", "label_column": "tags"},
    local=read_on_device(_shards, classes=True),
)
