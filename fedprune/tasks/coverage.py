"""How much of a text a tokenizer knows: what no known token covers is not in a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedprune.tasks.options import Data

MOST_UNKNOWN = 0.05
"""With a larger share of unknown characters a run is refused: its figures would be of little."""

_SPACES = np.array([code for code in range(0x3001) if chr(code).isspace()], dtype=np.uint32)


@dataclass(frozen=True)
class Coverage:
    """How much of some texts no symbol stands for.

    Attributes:
        characters: how many were read (of a model's own tokenizer: but white space).
        unknown: how many of them are read as the unknown symbol, or not at all.
        complete: (N,), which texts are known to their end, but for white space there; of one row
            where left out.
        texts: how many were made rows of one length; 0: they are streams, which are not cut off.
        cut: of how many of these the end is left out.
    """

    characters: int
    unknown: int
    complete: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.bool))
    texts: int = 0
    cut: int = 0

    @property
    def share(self) -> float:
        """The part that is unknown."""
        return self.unknown / self.characters if self.characters else 0.0


def covered(
    texts: Sequence[str],
    spans: Sequence[tuple[int, int]],
    ids: Tensor,
    unknown: int | None,
    whole: Tensor | None = None,
) -> tuple[Tensor, Coverage]:
    """Bytes of UTF-8 that each token stands for, and what no known token covers.

    White space that a tokenizer drops goes to the token that follows. Other characters that it
    drops, and those of the unknown token, count for no token.

    Args:
        texts: N texts.
        spans: first character of each token and the one after its last, row by row.
        ids: (N, T).
        unknown: id of the unknown token.
        whole: (N,), which texts were read to their end; all where left out. Of the others what
            comes after the last token was cut off, and is not counted.

    Returns:
        Sizes (N, T), which sum to the bytes of what is known up to a row's last token.
    """
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    base = np.concatenate([[0], lengths.cumsum()])
    start, total = base[:-1, None], int(base[-1])
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    pairs = np.array(spans, dtype=np.int64).reshape(*ids.shape, 2)
    lost = np.zeros(ids.shape, bool) if unknown is None else (ids == unknown).numpy()
    known = ~lost & (pairs[..., 1] > pairs[..., 0])
    begins, ends = pairs[..., 0] + start, pairs[..., 1] + start
    depth = np.zeros(total + 1, dtype=np.int64)
    np.add.at(depth, begins[known], 1)
    np.add.at(depth, ends[known], -1)
    spaces = np.isin(codes, _SPACES)
    seen = (depth[:-1].cumsum() > 0) | spaces
    widths = (1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)) * seen
    reached = np.maximum.accumulate(np.concatenate([start, ends], axis=1), axis=1)
    before = np.concatenate([[0], widths.cumsum()])
    sizes = np.diff(before[reached], axis=1) * ~lost
    last = base[1:] if whole is None else np.where(whole.numpy(), base[1:], reached[:, -1])
    within = np.arange(total) < np.repeat(last, lengths)
    missed = within & ~seen
    row = np.repeat(np.arange(len(texts)), lengths)
    ended = reached[:, -1] - base[:-1] >= [len(text.rstrip()) for text in texts]
    complete = ended & (np.bincount(row[missed], minlength=len(texts)) == 0)
    found = Coverage(int((within & ~spaces).sum()), int(missed.sum()), torch.from_numpy(complete))
    return torch.from_numpy(sizes), found


def merged_coverage(found: Iterable[Coverage]) -> Coverage:
    """Of all texts, what is known of some."""
    parts = list(found)
    sums = [sum(getattr(p, n) for p in parts) for n in ("characters", "unknown", "texts", "cut")]
    known = [p.complete for p in parts] or [torch.ones(0, dtype=torch.bool)]
    return Coverage(sums[0], sums[1], torch.cat(known), *sums[2:])


_READ: dict[tuple[object, ...], Coverage] = {}
"""What was read of the texts of the newest configurations in this process."""


def tell(config: Data, found: Iterable[Coverage]) -> None:
    """Keep how much of the texts of a configuration was read, for `reading_of`."""
    _READ.pop(_key(config), None)
    _READ[_key(config)] = merged_coverage(found)
    if len(_READ) > 4:
        del _READ[next(iter(_READ))]


def reading_of(config: Data) -> dict[str, int]:
    """What of the texts of a run was left out, where this process has read them; else empty."""
    read = _READ.get(_key(config), Coverage(0, 0))
    counts = {"characters": read.characters, "unknown": read.unknown}
    return {**counts, "texts": read.texts, "cut": read.cut} if read.unknown or read.cut else {}


def _key(config: Data) -> tuple[object, ...]:
    c = config
    return c.task, c.model, c.data, c.length, c.text_column, c.target_column, c.clients, c.split


def reading_summary(reading: Mapping[str, int]) -> list[str]:
    """What a reader should know of `reading_of`; nothing where nothing was left out."""
    if not reading:
        return []
    unknown, characters = reading["unknown"], reading["characters"]
    share = f"{unknown:,} of {characters:,} characters, {unknown / max(1, characters):.2%}"
    lines = [f"unknown to the model's symbols: {share}"] if unknown else []
    cut = f"cut at --length: {reading['cut']:,} of {reading['texts']:,} texts"
    return [*lines, cut] if reading["cut"] else lines


def check_known(model: str, found: Iterable[Coverage]) -> None:
    """Refuse texts of which the symbols of a model know too little.

    Raises:
        ValueError: more than `MOST_UNKNOWN` of their characters are unknown.
    """
    whole = merged_coverage(found)
    if whole.share > MOST_UNKNOWN:
        raise ValueError(
            f"model={model!r}: {whole.share:.1%} of the characters of the texts are unknown "
            f"to its symbols; allowed: at most {MOST_UNKNOWN:.0%}; with --data of a task on your "
            "own texts every family reads bytes, which know every text"
        )
