"""Figures that `llm.py` has measured, a line of JSON each, and the table of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from at_start import lines_of

from fedprune.codec.flags import pack_flags
from fedprune.codec.masks import encode_mask
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.parts import encode_answer
from fedprune.tensors.named import Masks, Tensors

AMOUNTS = ("50", "60", "70", "2:4")


UNITS = ("20", "30")


GROUPS = {
    "magnitude": "layer",
    "wanda": "row",
    "wanda_by_row": "layer",
    "ria": "row",
    "votes": "row",
    "sparsegpt": "layer",
    "flap": "global",
}
"""Comparison group of each method: the same for federated, centralised and local evidence."""


LOCAL = {"wanda": AMOUNTS, "ria": AMOUNTS, "sparsegpt": AMOUNTS, "flap": UNITS}
"""Amounts at which clients prune by their own evidence alone; two clients do (bible, news)."""

Line = dict[str, Any]


def lines_in(file: Path) -> list[Line]:
    keys = ("method", "amount", "seed", "who")
    return list({tuple(line[key] for key in keys): line for line in lines_of(file)}.values())


def wanted(seed: int, method: str) -> Iterator[Line]:
    """The lines of a method; local ones of the first seed alone."""
    for amount in UNITS if method == "flap" else AMOUNTS:
        yield {"method": method, "amount": amount, "seed": seed, "who": "federated"}
        if not seed and amount in LOCAL.get(method, ()):
            for client in range(2):
                yield {"method": method, "amount": amount, "seed": seed, "who": f"local {client}"}


def table(lines: Sequence[Line]) -> str:
    """Rows of methods and whose evidence, columns of amounts, as Markdown."""
    head = ["method", "evidence", *(f"{a} %" if a != "2:4" else a for a in (*UNITS, *AMOUNTS))]
    rows = [[*head, "up", "down"], ["---"] * (len(head) + 2)]
    for method in ("dense", *GROUPS):
        for who in ("federated", "local"):
            found = [x for x in lines if x["method"] == method and x["who"].startswith(who)]
            if found:
                sent = [_bytes([x for x in found if key in x], key) for key in ("up", "down")]
                cells = [_cell([x for x in found if x["amount"] == a]) for a in (*UNITS, *AMOUNTS)]
                whose = "nobody's" if method in ("dense", "magnitude") else who
                cells = [_cell(found), *cells[1:]] if method == "dense" else cells
                rows.append([method, whose, *cells, *sent])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(lines: Sequence[Line]) -> str:
    """Mean, and standard deviation and number of seeds, or of clients, where there are several."""
    values = [x["perplexity"] for x in lines]
    if not values:
        return ""
    spread = f" ± {stdev(values):.2g} ({len(values)})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}" if mean(values) < 1000 else f"{mean(values):,.0f}{spread}"


def _bytes(lines: Sequence[Line], key: str) -> str:
    return f"{max(x[key] for x in lines) / 1e6:.2f} MB" if lines else ""


def up(method: str, sums: Tensors, masks: Masks) -> int:
    """Bytes that a client sends: its coded answer, or its mask."""
    if method == "votes":
        return len(pack_flags(torch.cat([m.flatten() for m in masks.values()])))
    numbers = sum(t.numel() for t in sums.values())
    if not numbers or method == "sparsegpt":  # whose answer is too large to code for its size
        return 4 * numbers
    answer = Answer(torch.ones(numbers), 1.0, {"count": 1.0})
    return encode_answer(answer, Question("score", 1, {}, {}), "fp32").size()


def down(masks: Masks, numbers: Tensors) -> int:
    """Bytes of the result for a client that holds the base model: its mask, and what was set."""
    kept = sum(int(masks[n].sum()) if n in masks and masks[n].shape == t.shape else t.numel()
               for n, t in numbers.items())  # fmt: skip
    return len(encode_mask(masks)) + 4 * kept
