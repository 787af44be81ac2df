"""What tasks on texts with labels share (``--data``): one classifier, one row, one `Task`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fedprune.options.refusal import counted
from fedprune.structure.families.family import Need
from fedprune.tasks.cells import as_number
from fedprune.tasks.dealt_rows import population
from fedprune.tasks.language import length_of, text_tokenizer
from fedprune.tasks.loading import build
from fedprune.tasks.options import Data
from fedprune.tasks.task import Part, Task
from fedprune.tasks.token_rows import token_rows
from fedprune.tasks.tokenization import symbols_of
from fedprune.tasks.zoo import families_for, heads_of

USUAL = 128
"""Symbols of a text to classify, unless the configuration says another number."""

SPLITS_OF_ROWS = {"iid": "", "natural": "client"}

DEFAULTS_OF_ROWS = {
    "rounds": 20,
    "warmup": 6,
    "cohort": 10,
    "optimizer": "adamw",
    "lr": 3e-3,
    "batch_size": 16,
    "local_steps": 20,
}


_FEW = 20
"""So many distinct labels are classes, whatever they look like."""

OFTEN = 10
"""With more, a whole number that is a class occurs in so many rows on average."""


def distinct(labels: Sequence[str], option: str) -> list[str]:
    """The distinct labels, sorted as texts.

    Up to `_FEW` distinct labels are classes. Of more, numbers of which one is not whole are no
    classes; whole numbers are, if there are `OFTEN` rows for each on average; other texts are, if
    there are two. `option` named the column: label-column='stars'.

    Raises:
        ValueError: there is only one, or they are no classes.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"{option}: every row has the same label; allowed: at least two")
    said = (
        f"{option}: {len(names)} distinct {{}} in {counted(len(labels), 'row')} are no "
        f"classes; allowed: "
    )
    numbers = _numbers(names)
    rare = len(labels) < OFTEN * len(names)
    if len(names) > _FEW and numbers and (rare or any(n != int(n) for n in numbers)):
        raise ValueError(
            said.format("numbers") + f"--task text-regression, up to {_FEW} numbers, or whole ones "
            f"with {OFTEN} rows each on average"
        )
    if len(names) > _FEW and len(labels) < 2 * len(names):
        raise ValueError(said.format("labels") + f"up to {_FEW}, or two rows for each on average")
    return names


def _numbers(names: Sequence[str]) -> list[float]:
    """The names as numbers; none, where one of them is not a number."""
    try:
        return [as_number(name) for name in names]
    except ValueError:
        return []


def numbered(names: Sequence[str], found: Iterable[str], what: str) -> dict[str, int]:
    """The number of each name of a class.

    Raises:
        ValueError: there is none for something that was found in the data, a label or a tag.
    """
    index = {name: i for i, name in enumerate(names)}
    if odd := sorted(set(found) - index.keys()):
        whose = "rows" if what == "label" else "words"
        raise ValueError(
            f"class-names={list(index)}: {whose} have the {what} {odd[0]!r}; "
            f"allowed: a name for every {what} in the data"
        )
    return index


def classifier(
    config: Data, names: Sequence[str], kind: str = "", purpose: str = "classify"
) -> Any:
    """A model of transformers with an output a name, for texts of a user's own rows.

    `kind` is transformers' word for what its outputs are; "": the model's own.
    """
    symbols, length = symbols_of(config, purpose), length_of(config, USUAL)
    need = Need(purpose, symbols.size, length, symbols.pad, None, len(names), tuple(names))
    model: Any = build(config, need)
    model.config.problem_type = kind or model.config.problem_type
    return model


def one_text(config: Data) -> Part:
    """One row of the first id, of the first class; of a tokenizer of a model's own, no text.

    Some classifiers (T5, BART) pool the end of a text: there must be one.
    """
    length, symbols = length_of(config, USUAL), symbols_of(config, "classify")
    zeros = torch.zeros(1, length, dtype=torch.long)
    ids = token_rows(symbols, [""], length).ids if symbols.kind == "own" else zeros
    return {"inputs": ids, "attention": torch.ones_like(zeros), "labels": zeros[:, 0]}


def labelled_task(purpose: str, **own: Any) -> Task:
    """A task over texts with labels; what is given, and what differs."""
    usual: dict[str, Any] = {
        "unit": "examples",
        "output": heads_of,
        "models": families_for(purpose, "bert"),
        "paths": True,
        "columns": ("text", "label", "client"),
        "population": population,
        "splits": SPLITS_OF_ROWS,
        "defaults": DEFAULTS_OF_ROWS,
        "folder": True,
        "tokenizer": text_tokenizer(purpose),
        "tokens": ("inputs",),
    }
    return Task(**{**usual, **own})
