"""What texts are made of: single characters, or the tokens of a model's own tokenizer."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedprune.tasks.families import FAMILIES
from fedprune.tasks.loading import from_pretrained

if TYPE_CHECKING:
    from fedprune.config import RunConfig

# Fixed and public: a vocabulary gathered from the shards would itself be a release.
ALPHABET = ("<pad>", "<unk>", "\n", *(c for c in string.printable[:95]))
_IDS = {character: i for i, character in enumerate(ALPHABET)}
_UNKNOWN = _IDS["<unk>"]

MARKS = {"causal": (), "masked": ("<mask>",), "seq2seq": ("</s>",), "classify": ("<s>",)}
"""What a purpose needs beside the characters; their ids come after those of `ALPHABET`."""


@dataclass(frozen=True)
class Symbols:
    """The symbols of a task.

    Attributes:
        size: how many ids there are.
        pad: id that fills a row up.
        tokenizer: the Hugging Face tokenizer with these ids.
        characters: whether an id is a character of `ALPHABET`.
        mask: id that hides a symbol; None: there is none.
        end: id that ends a written text; None: there is none.
    """

    size: int
    pad: int
    tokenizer: Any
    characters: bool
    mask: int | None = None
    end: int | None = None


def symbols_of(config: RunConfig, purpose: str) -> Symbols:
    """The symbols of a configuration: characters for a family, its own tokenizer's for a path.

    Raises:
        FileNotFoundError: there is no such model, or it has no tokenizer.
    """
    if config.model in FAMILIES:
        return characters(purpose)
    return own_symbols(config.model, config.task)


@functools.cache
def characters(purpose: str) -> Symbols:
    """The fixed alphabet, and the marks that the purpose needs."""
    marks = {mark: len(ALPHABET) + i for i, mark in enumerate(MARKS[purpose])}
    return Symbols(
        len(ALPHABET) + len(marks),
        _IDS["<pad>"],
        _character_tokenizer(marks),
        True,
        marks.get("<mask>"),
        marks.get("</s>"),
    )


@functools.cache
def own_symbols(model: str, task: str) -> Symbols:
    """The symbols of the tokenizer that is saved beside a model.

    Raises:
        FileNotFoundError: there is none.
    """
    from transformers import AutoTokenizer

    own = from_pretrained(AutoTokenizer, model, task)
    if not own.is_fast:
        raise ValueError(
            f"model={model!r}: its tokenizer ({type(own).__name__}) does not say which characters "
            "a token covers; allowed: models with a fast tokenizer"
        )
    if own.pad_token_id is None:  # GPT-2: what pads is neither attended to nor counted
        own.pad_token = own.convert_ids_to_tokens(own.eos_token_id or 0)
    size = max(len(own), own.vocab_size)
    return Symbols(size, own.pad_token_id, own, False, own.mask_token_id, own.eos_token_id)


def encode(text: str) -> Tensor:
    """Character ids (len(text),)."""
    return torch.tensor([_IDS.get(c, _UNKNOWN) for c in text], dtype=torch.long)


def encoded(symbols: Symbols, text: str) -> tuple[Tensor, Tensor]:
    """The ids of a whole text without marks, and the bytes each stands for, both (n,).

    The bytes are those of the text in UTF-8. Those that no token covers (spaces that a tokenizer
    drops) go to the token that follows, so that they sum to the bytes up to the last token's end.
    """
    if symbols.characters:
        sizes = [len(c.encode()) for c in text] if not text.isascii() else [1] * len(text)
        return encode(text), torch.tensor(sizes, dtype=torch.long)
    given = symbols.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return torch.tensor(given["input_ids"], dtype=torch.long), _bytes(
        text, [end for _, end in given["offset_mapping"]]
    )


def _bytes(text: str, ends: Sequence[int]) -> Tensor:
    """Bytes between one end and the next; an end before what is covered already adds none."""
    at = torch.tensor([0, *(len(c.encode()) for c in text)], dtype=torch.long).cumsum(0)
    reached = torch.tensor([0, *ends], dtype=torch.long).cummax(0).values
    return at[reached].diff()


def rows_of(symbols: Symbols, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """One row a text, with the tokenizer's marks, cut and padded to `length`.

    Returns:
        ids (N, length), attention (N, length) of 1 and 0, and the bytes (N,) that a row stands for.
    """
    given = symbols.tokenizer(
        list(texts),
        truncation=True,
        padding="max_length",
        max_length=length,
        return_offsets_mapping=True,
    )
    ids = torch.tensor(given["input_ids"], dtype=torch.long)
    ends = [max(end for _, end in spans) for spans in given["offset_mapping"]]
    sizes = [len(text[:end].encode()) for text, end in zip(texts, ends, strict=True)]
    return ids, torch.tensor(given["attention_mask"]), torch.tensor(sizes, dtype=torch.long)


def _character_tokenizer(marks: dict[str, int]) -> Any:
    """A Hugging Face tokenizer of single characters, with the ids used in training."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(vocab={**_IDS, **marks}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    framed = {"<s>": "<s> $A", "</s>": "$A </s>"}
    frames = [(mark, frame) for mark, frame in framed.items() if mark in marks]
    for mark, frame in frames:
        core.post_processor = processors.TemplateProcessing(frame, None, [(mark, marks[mark])])
    named = {"<mask>": "mask_token", "</s>": "eos_token", "<s>": "cls_token"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # in a text "<unk>" is five characters
        **{named[mark]: mark for mark in marks},
    )
