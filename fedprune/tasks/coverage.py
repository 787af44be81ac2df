"""How much of a text a tokenizer knows: what no known token covers is not in a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

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
    """

    characters: int
    unknown: int
    complete: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.bool))

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


def check_known(model: str, found: Iterable[Coverage]) -> None:
    """Refuse texts of which the symbols of a model know too little.

    Raises:
        ValueError: more than `MOST_UNKNOWN` of their characters are unknown.
    """
    parts = list(found)
    whole = Coverage(sum(p.characters for p in parts), sum(p.unknown for p in parts))
    if whole.share > MOST_UNKNOWN:
        raise ValueError(
            f"model={model!r}: {whole.share:.1%} of the characters of the texts are unknown "
            f"to its symbols; allowed: at most {MOST_UNKNOWN:.0%}; with --data of a task on your "
            "own texts every family reads bytes, which know every text"
        )
