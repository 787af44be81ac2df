"""Text to text: write a text from another one; here, restore capitals and punctuation.

A phrase of Shakespeare is given in small letters without punctuation, and the original is to be
written: what a small T5 can learn, and what everybody can judge. Phrases are lines, broken at
spaces. They are short because a T5 that knows characters and no positions must first find where
it is in what it was given: of 64 characters it had not in 5,000 steps, of 24 it had in 1,000.
"""

from __future__ import annotations

import string
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.tasks.coverage import check_known, tell
from fedprune.tasks.language import (
    FEWEST_WINDOWS,
    blank_row,
    length_of,
    text_model,
    token_task,
    unknown_rows,
)
from fedprune.tasks.later import Later
from fedprune.tasks.losses import token_loss
from fedprune.tasks.metrics import rouge_l
from fedprune.tasks.options import Data
from fedprune.tasks.speeches import SLOW_STARTERS, SPLITS_OF_ROLES, local_text, roles
from fedprune.tasks.splits import cut_by_content
from fedprune.tasks.task import Loss, Part, Shard, examples
from fedprune.tasks.token_rows import token_rows
from fedprune.tasks.tokenization import symbols_of

PHRASE = 24
"""Characters of a phrase and its end, unless the configuration says another number."""

GENERATED = 20
"""Texts that a client generates of its test part, the first ones: generating takes long."""

_Pair = tuple[str, str]
"""What is given, what is to be written."""


def text_to_text_loss(model: nn.Module, batch: Part) -> Loss:
    """Cross-entropy of what is to be written, (B, T), each symbol after the right ones before."""
    out = model(
        input_ids=batch["inputs"], attention_mask=batch["attention"], labels=batch["labels"]
    )
    return token_loss(out.logits, batch)


def bare(line: str) -> str:
    """A line in small letters and without ASCII punctuation, single spaces between words."""
    return " ".join(line.lower().translate(_NO_PUNCTUATION).split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def pairs_of(texts: Sequence[str], length: int) -> list[_Pair]:
    """Every phrase of less than `length` characters with a word in it: bare, and as it was."""
    lines = (line for text in texts for line in text.splitlines())
    phrases = (phrase for line in lines for phrase in textwrap.wrap(line, length - 1))
    return [(bare(phrase), phrase) for phrase in phrases if bare(phrase)]


def pair_rows(pairs: Sequence[_Pair], config: Data, length: int) -> Part:
    """One example a pair: inputs, attention, labels and their bytes, (rows, length).

    Texts that are too long are cut at the end. Labels of padding are -100. `whole` (rows, 2) says
    of what is given and of what is to be written whether all of it is there and known; `unknown`
    (rows,) is the id of the unknown symbol, -1 where there is none.

    Raises:
        ValueError: the symbols do not know what the texts are made of.
    """
    symbols = symbols_of(config, "seq2seq")
    given = token_rows(symbols, [text for text, _ in pairs], length)
    wanted = token_rows(symbols, [target for _, target in pairs], length)
    check_known(config.model, [given.coverage, wanted.coverage])
    if config.text_column:  # all rows at once; phrases of plays come by role, and fit
        tell(config, [given.coverage, wanted.coverage])
    return {
        "inputs": given.ids,
        "attention": given.attention,
        "labels": torch.where(wanted.attention == 1, wanted.ids, -100),
        "bytes": wanted.sizes.int(),
        "whole": torch.stack([given.whole, wanted.whole], 1),
        "unknown": unknown_rows(symbols.unknown, len(pairs)),
    }


def cut_in_order(rows: Part) -> Shard:
    """First 80 % of the examples to train on, the next 10 % validation, the last 10 % test."""
    n = rows["labels"].shape[0]
    held = max(1, n // 10)
    pieces = {name: t.split([n - 2 * held, held, held]) for name, t in rows.items()}
    return Shard(*({name: piece[i] for name, piece in pieces.items()} for i in range(3)))


def cut_pairs(rows: Part, config: Data) -> Shard:
    """The three parts of a client's phrases: in order, or where noise hides examples by content."""
    if config.dp == "example":
        return cut_by_content(rows, config.seed)
    return cut_in_order(rows)


def _shards(config: Data) -> Sequence[Shard]:
    """The phrases of every partition, in the order they are spoken."""
    texts = roles(config)
    return Later(len(texts), lambda partition: _shard(texts[partition], config))


def _shard(texts: Sequence[str], config: Data) -> Shard:
    length = length_of(config, PHRASE)
    return cut_pairs(pair_rows(pairs_of(texts, length), config, length), config)


def local_phrases(folder: Path, config: Data) -> Shard:
    """A device's own shard: the phrases of its ``*.txt`` files.

    Raises:
        FileNotFoundError: there is too little text.
    """
    return _shard([local_text(folder, FEWEST_WINDOWS * length_of(config, PHRASE))], config)


GENERATION_SUMS = ("exact", "rouge_l", "copied_exact", "copied_rouge_l", "examined")
"""Texts written exactly, sum of ROUGE-L, texts examined."""


@torch.no_grad()
def generation_sums(model: nn.Module, part: Part, config: Data) -> Mapping[str, float]:
    """Write the first `GENERATED` texts of a part greedily and sum what `GENERATION_SUMS` names.

    Texts are compared, not ids: a text that was cut off or has unknown symbols is never written
    exactly, and an unknown symbol is no word that another could be equal to.
    """
    if not examples(part):
        return dict.fromkeys(GENERATION_SUMS, 0.0)
    tokenizer = symbols_of(config, "seq2seq").tokenizer
    rows = {name: t[:GENERATED] for name, t in part.items()}
    writer: Any = model
    ids = writer.generate(
        input_ids=rows["inputs"],
        attention_mask=rows["attention"],
        max_new_tokens=rows["labels"].shape[1],
        do_sample=False,
        num_beams=1,
        use_cache=True,
    )
    labels = rows["labels"].masked_fill(rows["labels"] == -100, tokenizer.pad_token_id)
    unknown = rows["unknown"].tolist()
    wanted = _texts(tokenizer, labels, unknown, "\ufffe")
    written, given = (_texts(tokenizer, t, unknown, "\uffff") for t in (ids, rows["inputs"]))
    whole = [bool(row) for row in rows["whole"][:, 1]]
    copied = [bool(row) for row in rows["whole"].all(1)]
    return {
        "exact": float(sum(map(_same, whole, written, wanted))),
        "rouge_l": sum(map(rouge_l, written, wanted)),
        "copied_exact": float(sum(map(_same, copied, given, wanted))),
        "copied_rouge_l": sum(map(rouge_l, given, wanted)),
        "examined": float(len(wanted)),
    }


def _same(whole: bool, text: str, wanted: str) -> bool:
    return whole and text == wanted


def _texts(tokenizer: Any, rows: Tensor, unknown: Sequence[int], mark: str) -> list[str]:
    """Rows of ids as texts without marks, `mark` where there is an unknown symbol or half a one."""

    def text(ids: list[int], odd: int) -> str:
        cuts = [-1, *(i for i, one in enumerate(ids) if one == odd), len(ids)]
        pieces = [ids[a + 1 : b] for a, b in pairwise(cuts)]
        return mark.join(tokenizer.decode(p, skip_special_tokens=True) for p in pieces)

    both = zip(rows.tolist(), unknown, strict=True)
    return [text(ids, odd).replace("\ufffd", mark) for ids, odd in both]


SHAKESPEARE_RESTORE = token_task(
    "seq2seq",
    "t5",
    summary="capitals and punctuation of Shakespeare's phrases, one client per role (T5)",
    model=text_model("seq2seq", PHRASE),
    loss=text_to_text_loss,
    shards=_shards,
    dummy=lambda config: blank_row(length_of(config, PHRASE)),
    extra=("bytes",),
    test_sums=generation_sums,
    test_sum_names=GENERATION_SUMS,
    splits=SPLITS_OF_ROLES,
    defaults=SLOW_STARTERS,
    local=local_phrases,
)
