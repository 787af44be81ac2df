"""Masked language modelling: symbols are hidden once, and BERT or RoBERTa guess them.

Devlin et al. 2019 (arXiv 1810.04805), section 3.1: of 15 % of the symbols 80 % become the mask,
10 % another symbol and 10 % stay; the loss is over these 15 %. RoBERTa (Liu et al. 2019, arXiv
1907.11692) draws them anew in every epoch. Here they are drawn once for each example, from the
seed: so a loss, and a score, is a function of the data, and can be computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fedprune.randomness import generator
from fedprune.tasks.language import (
    FEWEST_WINDOWS,
    blank_row,
    cut_streams,
    length_of,
    token_task,
    unknown_rows,
)
from fedprune.tasks.later import Later
from fedprune.tasks.losses import token_loss
from fedprune.tasks.options import Data
from fedprune.tasks.speeches import SLOW_STARTERS, SPLITS_OF_ROLES, local_text, roles
from fedprune.tasks.splits import content_numbers
from fedprune.tasks.task import Loss, Part, Shard, batches
from fedprune.tasks.tokenization import Symbols, symbols_of

HIDDEN = 0.15
"""Part of the symbols that are labels."""


def masked_token_loss(model: nn.Module, batch: Part) -> Loss:
    """Cross-entropy of a model's logits (B, T, V) at the symbols that were hidden."""
    out = model(input_ids=batch["inputs"], attention_mask=batch["attention"])
    return token_loss(out.logits, batch)


def stretches(ids: Tensor, sizes: Tensor, symbols: Symbols, length: int) -> Part:
    """Consecutive examples of `length` symbols with nothing hidden yet; the last one is padded.

    Returns:
        inputs and attention (1 = symbol, 0 = padding), both (rows, length), and the unknown
        symbol's id, (rows,).
    """
    del sizes  # bits per byte mean nothing where six of seven symbols are given
    n = len(ids)
    rows = -(-n // length)
    inputs = torch.full((rows * length,), symbols.pad)
    attention = torch.zeros(rows * length, dtype=torch.long)
    inputs[:n] = ids
    attention[:n] = 1
    return {
        "inputs": inputs.view(rows, length),
        "attention": attention.view(rows, length),
        "unknown": unknown_rows(symbols.unknown, rows),
    }


def hidden(part: Part, symbols: Symbols, gen: torch.Generator) -> Part:
    """The part with symbols hidden, and labels (rows, length) that are -100 elsewhere."""
    ids, shape = part["inputs"], part["inputs"].shape
    there = part["attention"] == 1
    draws = torch.rand(shape, generator=gen).masked_fill(~there, 2.0)
    chosen = draws < HIDDEN
    if there.any() and not chosen.any():  # of a few symbols the one that came nearest is hidden
        chosen = draws == draws.min()
    fate = torch.rand(shape, generator=gen)
    other = torch.randint(*symbols.plain, shape, generator=gen)
    inputs = torch.where(chosen & (fate < 0.8), symbols.mask or 0, ids)
    inputs = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), other, inputs)
    return {**part, "inputs": inputs, "labels": torch.where(chosen, ids, -100)}


def hidden_by_content(part: Part, symbols: Symbols, seed: int) -> Part:
    """As `hidden`, each row by draws that depend on the row alone, so that no other moves them."""
    numbers = content_numbers(part, seed, "hide by content")
    rows = [
        hidden(row, symbols, torch.Generator().manual_seed(number >> 1))
        for row, number in zip(batches(part, 1), numbers, strict=True)
    ]
    if not rows:
        return hidden(part, symbols, torch.Generator())
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def masked_shards(texts: Sequence[str], config: Data) -> Later:
    """Each text cut by time, its symbols hidden by draws for this seed, partition and part.

    Where noise hides an example (``--dp example``) they are hidden by draws for this seed and for
    what stands in the example, so that one more or one less does not change the others.

    Raises:
        ValueError: the model's tokenizer has no mask, or does not know the texts' characters.
    """
    symbols = symbols_of(config, "masked")
    if symbols.mask is None:
        raise ValueError(
            f"model={config.model!r}: its tokenizer has no mask; "
            "allowed: a model made for masked language modelling"
        )

    def covered(partition: int, whole: Shard) -> Shard:
        parts = (whole.train, whole.validation, whole.test)
        if config.dp == "example":
            return Shard(*(hidden_by_content(part, symbols, config.seed) for part in parts))
        draws = (generator(config.seed, "hide", partition, i) for i in range(3))
        return Shard(*(hidden(p, symbols, gen) for p, gen in zip(parts, draws, strict=True)))

    streams = cut_streams(texts, config, "masked", stretches)
    return Later(len(streams), lambda partition: covered(partition, streams[partition]))


def local_masked_shard(folder: Path, config: Data) -> Shard:
    """A device's own shard: the text of its ``*.txt`` files, cut by time."""
    text = local_text(folder, FEWEST_WINDOWS * length_of(config))
    return masked_shards([text], config)[0]


SHAKESPEARE_MASKED = token_task(
    "masked",
    "bert",
    summary="hidden characters of Shakespeare, one client per speaking role (BERT, 2 layers)",
    loss=masked_token_loss,
    shards=lambda config: masked_shards(["".join(own) for own in roles(config)], config),
    dummy=lambda config: blank_row(length_of(config)),
    splits=SPLITS_OF_ROLES,
    defaults=SLOW_STARTERS,
    local=local_masked_shard,
)
