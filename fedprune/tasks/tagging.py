"""A tag for every word (``--data``): names, parts of speech."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.options.refusal import counted as so_many
from fedprune.structure.families.family import Need
from fedprune.tasks.cells import as_list
from fedprune.tasks.coverage import check_known, tell
from fedprune.tasks.dealt_rows import population, read_on_device, shares
from fedprune.tasks.entities import entities, tag_parts
from fedprune.tasks.language import length_of, text_tokenizer
from fedprune.tasks.loading import build
from fedprune.tasks.losses import counted_labels, label_tokens, token_loss
from fedprune.tasks.metrics import baseline_of, label_counts
from fedprune.tasks.options import Data
from fedprune.tasks.splits import cut_later
from fedprune.tasks.tables import cached_by_config, rows_with_text
from fedprune.tasks.task import Loss, Naive, Part, Shard, Task
from fedprune.tasks.token_rows import Rows, token_rows
from fedprune.tasks.tokenization import Symbols, symbols_of
from fedprune.tasks.userdata import DEFAULTS_OF_ROWS, SPLITS_OF_ROWS, USUAL
from fedprune.tasks.zoo import families_for, heads_of

_SUMS = ("entities_right", "entities_found", "entities")
"""Entities that were found as they are, that were found, and that are there."""


def _columns(config: Data) -> dict[str, list[Any]]:
    """Words and tags of every row, as many of one as of the other.

    Raises:
        ValueError: they are no lists, or differ in length, or a word is empty; with the row.
    """
    read = {"text": as_list, "label": as_list}
    columns = rows_with_text(config, "label", read=read)
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
    (-100). Sentences that are too long are cut at the end.

    Returns:
        The rows, and labels (N, length).
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
    index = {name: i for i, name in enumerate(names_of_tags(config))}
    if odd := sorted({tag for tags in columns["label"] for tag in tags} - index.keys()):
        raise ValueError(
            f"class-names={list(index)}: words have the tag {odd[0]!r}; "
            "allowed: a name for every tag in the data"
        )
    tags = [[index[tag] for tag in row] for row in columns["label"]]
    symbols = symbols_of(config, "tag")
    read, labels = tagged_rows(symbols, columns["text"], tags, length_of(config, USUAL))
    check_known(config.model, [read.coverage])
    tell(config, [read.coverage])
    rows = {"inputs": read.ids, "attention": read.attention, "labels": labels}
    return cut_later(rows, shares(config, columns, SPLITS_OF_ROWS), config)


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


def tagger(config: Data) -> nn.Module:
    """A token classifier for the tags of the data."""
    symbols, names = symbols_of(config, "tag"), tuple(names_of_tags(config))
    length = length_of(config, USUAL)
    need = Need("tag", symbols.size, length, symbols.pad, None, len(names), names)
    return build(config, need)


def one_sentence(config: Data) -> Part:
    """One row of the first id, of the first tag."""
    zeros = torch.zeros(1, length_of(config, USUAL), dtype=torch.long)
    return {"inputs": zeros, "attention": torch.ones_like(zeros), "labels": zeros}


def frequent_tag_alone(train: Tensor, test: Tensor, names: Sequence[str]) -> dict[str, float]:
    """What the most frequent tag reaches; where it is O, it finds no entity."""
    found = {"accuracy": baseline_of("accuracy", train, test)["accuracy"]}
    there = sum(
        n for n, name in zip(test.tolist(), names, strict=True) if tag_parts(name)[0] != "O"
    )
    if tag_parts(names[int(train.argmax())])[0] == "O" and there:
        found["entity_f1"] = 0.0
    return found


TAGGING = Task(
    summary="a tag for every word, from --data",
    metric="entity_f1",
    unit="words",
    model=tagger,
    loss=tag_loss,
    shards=_shards,
    labels=label_tokens,
    output=heads_of,
    models=families_for("tag", "bert"),
    paths=True,
    columns=("text", "label", "client"),
    classes=lambda config: len(names_of_tags(config)),
    class_names=names_of_tags,
    naive=Naive(
        lambda config: len(names_of_tags(config)),
        lambda part, config: label_counts(part, len(names_of_tags(config))),
        lambda train, test, config: frequent_tag_alone(train, test, names_of_tags(config)),
    ),
    dummy=one_sentence,
    extra=_SUMS,
    population=lambda config: population(config, read=as_list),
    splits=SPLITS_OF_ROWS,
    defaults={**DEFAULTS_OF_ROWS, "text_column": "tokens", "label_column": "tags"},
    folder=True,
    local=read_on_device(_shards, classes=True),
    tokenizer=text_tokenizer("tag"),
    tokens=("inputs",),
)
