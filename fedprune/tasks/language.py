"""Texts as examples: windows of a stream, and who holds which texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.structure.families.family import Need
from fedprune.tasks.coverage import check_known, tell
from fedprune.tasks.later import Later
from fedprune.tasks.loading import build
from fedprune.tasks.losses import label_tokens, next_token_loss
from fedprune.tasks.options import Data
from fedprune.tasks.splits import partition
from fedprune.tasks.task import Part, Shard, Task
from fedprune.tasks.token_rows import Reading, ids_of_text, token_rows
from fedprune.tasks.tokenization import Symbols, symbols_of
from fedprune.tasks.zoo import families_for, heads_of

WINDOW = 64
"""Symbols of an example, unless the configuration says another number."""

FEWEST_WINDOWS = 20
"""An owner with less text is no client: its held-out tenths would be shorter than two windows."""

FEWEST_SYMBOLS = 20
"""A shorter stream is not cut: of its three parts each must have something to predict."""

OwnedText = tuple[str, str, str]
"""Whose it is, what else it is sorted by (a play, a party), the text."""

Cut = Callable[[Tensor, Tensor, Symbols, int], Part]
"""Examples of a stream: ids, bytes, the symbols, symbols of an example."""


def length_of(config: Data, usual: int = WINDOW) -> int:
    """Symbols of an example."""
    return config.length or usual


def windows(
    ids: Tensor,
    sizes: Tensor | None = None,
    length: int = WINDOW,
    pad: int = 0,
    unknown: int | None = None,
) -> Part:
    """Consecutive examples of `length` inputs and the symbols that follow them.

    Every symbol but the first is a label exactly once; the last example is padded, its padding
    does not count (-100).

    Args:
        ids: (n,); none give no examples.
        sizes: (n,), the bytes that each symbol stands for; one each where left out.
        length: symbols of an example.
        pad: the id that fills the last example up.
        unknown: the id that is never a right answer; None: there is none.

    Returns:
        inputs and labels (rows, length), the bytes that each label stands for, (rows, length),
        and the unknown's id (rows,), -1 where there is none.
    """
    n = max(0, len(ids) - 1)
    rows = max(min(1, len(ids)), -(-n // length))
    inputs = torch.full((rows * length,), pad)
    labels = torch.full((rows * length,), -100)
    counted = torch.zeros(rows * length, dtype=torch.int32)
    inputs[:n] = ids[:-1]
    labels[:n] = ids[1:]
    counted[:n] = 1 if sizes is None else sizes[1:]
    return {
        "inputs": inputs.view(rows, length),
        "labels": labels.view(rows, length),
        "bytes": counted.view(rows, length),
        "unknown": unknown_rows(unknown, rows),
    }


def unknown_rows(unknown: int | None, rows: int) -> Tensor:
    """The column that tells a loss which label is the unknown symbol, (rows,)."""
    return torch.full((rows,), -1 if unknown is None else unknown)


def following(ids: Tensor, sizes: Tensor, symbols: Symbols, length: int) -> Part:
    """`windows`, as a `Cut`."""
    return windows(ids, sizes, length, symbols.pad, symbols.unknown)


def cut_streams(texts: Sequence[str], config: Data, purpose: str, cut: Cut = following) -> Later:
    """Of each text the first 80 % of the symbols to train on, 10 % validation, the last 10 % test.

    Of fewer than `FEWEST_SYMBOLS` all are to train on: the other parts have no example.

    Raises:
        ValueError: the symbols do not know what the texts are made of.
    """
    symbols, length = symbols_of(config, purpose), length_of(config)
    read = [ids_of_text(symbols, text) for text in texts]
    check_known(config.model, [r.coverage for r in read])
    tell(config, [r.coverage for r in read])

    def shard(reading: Reading) -> Shard:
        held = len(reading.ids) // 10 if len(reading.ids) >= FEWEST_SYMBOLS else 0
        pieces = [len(reading.ids) - 2 * held, held, held]
        both = zip(reading.ids.split(pieces), reading.sizes.split(pieces), strict=True)
        return Shard(*(cut(ids, sizes, symbols, length) for ids, sizes in both))

    return Later(len(read), lambda partition_: shard(read[partition_]))


def dealt(
    rows: Sequence[OwnedText], config: Data, column: str, what: str, fewest: int
) -> list[list[str]]:
    """The texts of every partition, in the order they were written.

    The `clients` owners with the most text are the clients; other splits deal the same texts.
    `column` is what the split works on ("owner", "kind" or ""), `what` what owners are called in a
    complaint ("roles speak"), `fewest` the characters below which an owner is no client.

    Raises:
        ValueError: there are not that many owners with enough to say.
    """
    said: Counter[str] = Counter()
    for owner, _, text in rows:
        said[owner] += len(text)
    able = sum(size >= fewest for size in said.values())
    if not able:
        raise ValueError(
            f"clients={config.clients}: no {what} {fewest} characters or more; "
            "allowed: longer texts, or a smaller --length"
        )
    if config.clients > able:
        raise ValueError(
            f"clients={config.clients}: {able} {what} {fewest} characters or more; "
            f"allowed: 1 to {able}"
        )
    largest = set(sorted(said, key=lambda owner: (-said[owner], owner))[: config.clients])
    chosen = [row for row in rows if row[0] in largest]
    columns = {"owner": [r[0] for r in chosen], "kind": [r[1] for r in chosen]}
    return [[chosen[i][2] for i in own] for own in partition(config, column, columns)]


def file_text(file: Path) -> str:
    """The text of a file, without the mark that it may begin with.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"data={str(file)!r}: not utf-8: byte 0x{error.object[error.start]:02x} in line "
            f"{line}, {error.reason}; allowed: utf-8"
        ) from None


BY_OWNER = {"natural": "owner", "iid": "", "dirichlet": "kind", "shards": "kind"}
"""Splits of texts that have an owner and a kind."""


def text_rows(texts: Sequence[str], config: Data, usual: int) -> Part:
    """Texts to classify, cut and padded to one length: inputs and attention (N, length).

    Raises:
        ValueError: the symbols do not know what the texts are made of.
    """
    read = token_rows(symbols_of(config, "classify"), texts, length_of(config, usual))
    check_known(config.model, [read.coverage])
    tell(config, [read.coverage])
    return {"inputs": read.ids, "attention": read.attention}


def text_model(purpose: str, usual: int = WINDOW) -> Callable[[Data], nn.Module]:
    """`Task.model` of a task over symbols."""

    def model(config: Data) -> nn.Module:
        symbols = symbols_of(config, purpose)
        length = length_of(config, usual)
        return build(config, Need(purpose, symbols.size, length, symbols.pad, symbols.end))

    return model


def text_tokenizer(purpose: str) -> Callable[[Data], Any]:
    """`Task.tokenizer` of a task over symbols."""
    return lambda config: symbols_of(config, purpose).tokenizer


def one_window(config: Data) -> Part:
    """`Task.dummy` of a stream: one row of the first id."""
    zeros = torch.zeros(1, length_of(config), dtype=torch.long)
    return {"inputs": zeros, "labels": zeros}


def blank_row(length: int) -> Part:
    """One row of the first id, given and to be written."""
    zeros = torch.zeros(1, length, dtype=torch.long)
    return {"inputs": zeros, "attention": torch.ones_like(zeros), "labels": zeros}


def token_task(purpose: str, first: str, **own: Any) -> Task:
    """A task over the tokens of texts: perplexity, the models of a purpose, their tokenizer.

    `first` is the family that is the default; what is given takes the place of what is usual.
    """
    usual: dict[str, Any] = {
        "metric": "perplexity",
        "unit": "tokens",
        "model": text_model(purpose),
        "labels": label_tokens,
        "output": heads_of,
        "models": families_for(purpose, first),
        "paths": True,
        "classes": lambda config: symbols_of(config, purpose).size,
        "tokenizer": text_tokenizer(purpose),
        "tokens": ("inputs", "labels"),
    }
    return Task(**{**usual, **own})


def next_token_task(**own: Any) -> Task:
    """A task whose labels are the next tokens of windows over streams of text."""
    usual = {"loss": next_token_loss, "dummy": one_window, "extra": ("bytes",)}
    return token_task("causal", "llama", **{**usual, **own})
