"""Texts as ids: a whole text, or rows of one length, with the bytes that each id stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedprune.tasks.coverage import Coverage, covered, merged_coverage
from fedprune.tasks.tokenization import CHARACTER_IDS, FIRST_BYTE, UNKNOWN_ID, Symbols


@dataclass(frozen=True)
class Reading:
    """What was read of texts.

    Attributes:
        ids: (..., T).
        sizes: how many bytes of UTF-8 each id stands for, of the same shape; 0 for the unknown
            symbol and for marks.
        coverage: how much of the texts no symbol stands for.
    """

    ids: Tensor
    sizes: Tensor
    coverage: Coverage


def encode(text: str) -> Tensor:
    """Ids of characters of `ALPHABET`, (len(text),)."""
    return torch.tensor([CHARACTER_IDS.get(c, UNKNOWN_ID) for c in text], dtype=torch.long)


def ids_of_text(symbols: Symbols, text: str) -> Reading:
    """A whole text without marks, ids (n,).

    Bytes that no token covers, such as spaces that a tokenizer drops, go to the token that
    follows, so that sizes sum to the bytes of what is known up to the last token's end.
    """
    text = valid(text)
    if symbols.kind == "bytes":
        raw = bytearray(text.encode())
        ids = torch.frombuffer(raw, dtype=torch.uint8).long() if raw else encode("")
        return Reading(ids + FIRST_BYTE, torch.ones_like(ids), Coverage(len(text), 0))
    if symbols.kind == "characters":
        ids = encode(text)
        known = ids != UNKNOWN_ID  # all of them are ASCII, of one byte
        return Reading(ids, known.long(), Coverage(len(text), int((~known).sum())))
    given = symbols.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids = torch.tensor([given["input_ids"]], dtype=torch.long)
    sizes, coverage = covered([text], given["offset_mapping"], ids, symbols.unknown)
    return Reading(ids[0], sizes[0], coverage)


def valid(text: str) -> str:
    """The text with "?" for every half of a surrogate pair, which has no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Rows(Reading):
    """Texts as rows of one length, with the tokenizer's marks, cut and padded.

    Attributes:
        attention: (N, length), 1 where there is a symbol, 0 where there is padding.
        whole: (N,), whether a row is all of its text: nothing cut off, nothing unknown.
        spans: (N, length, 2), the first character of the text that an id stands for and the one
            after its last; 0 and 0 for none.
    """

    attention: Tensor
    whole: Tensor
    spans: Tensor


_AT_ONCE = 10_000
"""Texts that are rows at once: on the way there each of their symbols is several objects."""


def token_rows(symbols: Symbols, texts: Sequence[str], length: int) -> Rows:
    """One row a text, ids (N, length)."""
    starts = range(0, max(1, len(texts)), _AT_ONCE)
    found = [_rows_at_once(symbols, texts[at : at + _AT_ONCE], length) for at in starts]
    return Rows(
        torch.cat([piece.ids for piece in found]),
        torch.cat([piece.sizes for piece in found]),
        merged_coverage(piece.coverage for piece in found),
        torch.cat([piece.attention for piece in found]),
        torch.cat([piece.whole for piece in found]),
        torch.cat([piece.spans for piece in found]),
    )


def _rows_at_once(symbols: Symbols, texts: Sequence[str], length: int) -> Rows:
    texts = [valid(text) for text in texts]
    given = symbols.tokenizer(
        texts,
        truncation=True,
        padding="max_length",
        padding_side="right",  # positions are counted from the left, and so are those of one text
        max_length=length,
        return_offsets_mapping=True,
    )
    ids = torch.tensor(given["input_ids"], dtype=torch.long).view(len(texts), -1)
    attention = torch.tensor(given["attention_mask"], dtype=torch.long).view(ids.shape)
    spans = [pair for row in given["offset_mapping"] for pair in row]
    sizes, coverage = covered(texts, spans, ids, symbols.unknown, attention.sum(-1) < length)
    places = torch.tensor(given["offset_mapping"], dtype=torch.int32).view(*ids.shape, 2)
    ends = torch.tensor([len(text.rstrip()) for text in texts], dtype=torch.long)
    full = attention.sum(-1) == ids.shape[1]
    cut = int((full & (places[..., 1].amax(-1) < ends)).sum())
    coverage = replace(coverage, texts=len(texts), cut=cut)
    if symbols.kind != "bytes":
        return Rows(ids, sizes, coverage, attention, coverage.complete, places)
    first, after = symbols.plain  # a row may end within a character
    sizes = ((ids >= first) & (ids < after)).long()
    whole = torch.tensor([len(text.encode()) for text in texts], dtype=torch.long)
    complete = sizes.sum(-1) == whole
    coverage = replace(coverage, cut=int((~complete).sum()))
    return Rows(ids, sizes, coverage, attention, complete, places)
