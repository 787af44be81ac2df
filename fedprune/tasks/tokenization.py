"""What texts are made of: UTF-8 bytes, characters of an alphabet, or tokens of a model's own."""

from __future__ import annotations

import functools
import string
from dataclasses import dataclass
from typing import Any, Literal

from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.tasks.fetching import from_pretrained
from fedprune.tasks.options import Data

# Fixed and public: a vocabulary gathered from the shards would itself be a release.
ALPHABET = ("<pad>", "<unk>", "\n", *(c for c in string.printable[:95]))
CHARACTER_IDS = {character: i for i, character in enumerate(ALPHABET)}
UNKNOWN_ID = CHARACTER_IDS["<unk>"]

FIRST_BYTE = 2
"""The id of byte 0: <pad> and <unk> come before the bytes, so that they are as in `ALPHABET`."""

MARKS = {"causal": (), "masked": ("<mask>",), "seq2seq": ("</s>",), "classify": ("<s>",), "tag": ()}
"""What a purpose needs beside the symbols of a text; their ids come last."""


@dataclass(frozen=True)
class Symbols:
    """The symbols of a task.

    Attributes:
        size: how many ids there are.
        pad: id that fills a row up.
        tokenizer: the Hugging Face tokenizer with these ids.
        kind: "bytes" of UTF-8, "characters" of `ALPHABET`, or tokens of a model's "own".
        unknown: id of all that has none of its own; None: there is none.
        mask: id that hides a symbol; None: there is none.
        end: id that ends a written text; None: there is none.
    """

    size: int
    pad: int
    tokenizer: Any
    kind: Literal["bytes", "characters", "own"]
    unknown: int | None = None
    mask: int | None = None
    end: int | None = None

    @property
    def plain(self) -> tuple[int, int]:
        """The ids that a text can have: the first one, and the one after the last."""
        if self.kind == "own":
            return 0, self.size
        return FIRST_BYTE, FIRST_BYTE + 256 if self.kind == "bytes" else len(ALPHABET)


def symbols_of(config: Data, purpose: str) -> Symbols:
    """The symbols of a configuration.

    A path brings its own tokenizer. A family reads the bytes of a user's own rows, which may be
    in any language, and the characters of `ALPHABET` in the tasks over English texts.

    Raises:
        FileNotFoundError: there is no such model, or it has no tokenizer.
    """
    if config.model not in SMALL_MODELS:
        return own_symbols(config.model, config.task)
    return utf8_bytes(purpose) if config.text_column else characters(purpose)


@functools.cache
def characters(purpose: str) -> Symbols:
    """The fixed alphabet, and the marks that the purpose needs."""
    from tokenizers import Regex, decoders, models, pre_tokenizers

    vocabulary = _with_marks(CHARACTER_IDS, purpose)
    return _from_scratch(
        "characters",
        models.WordLevel(vocab=vocabulary, unk_token="<unk>"),
        pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated"),
        decoders.Fuse(),
        purpose,
    )


@functools.cache
def utf8_bytes(purpose: str) -> Symbols:
    """The 256 bytes of UTF-8, and the marks that the purpose needs: no text is unknown.

    <unk> is never written; it is what a byte is read as that ``--vocabulary used`` took out.
    """
    from tokenizers import decoders, models, pre_tokenizers

    names = {name: FIRST_BYTE + byte for byte, name in enumerate(byte_names())}
    vocabulary = _with_marks({"<pad>": 0, "<unk>": 1, **names}, purpose)
    return _from_scratch(
        "bytes",
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
        purpose,
    )


def _with_marks(vocabulary: dict[str, int], purpose: str) -> dict[str, int]:
    marks = {mark: len(vocabulary) + i for i, mark in enumerate(MARKS[purpose])}
    return {**vocabulary, **marks}


def byte_names() -> list[str]:
    """What `tokenizers` calls each byte (Radford et al. 2019, GPT-2): a character one can see.

    Printable Latin-1 is called as it is, the rest by the characters from 256 on, in order.
    """
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(256, 512))
    return [chr(byte if byte in seen else next(rest)) for byte in range(256)]


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
    # GPT-2 calls its end the unknown too, and knows every byte.
    unknown = None if own.unk_token_id == own.eos_token_id else own.unk_token_id
    return Symbols(size, own.pad_token_id, own, "own", unknown, own.mask_token_id, own.eos_token_id)


def _from_scratch(
    kind: Literal["bytes", "characters"], model: Any, cutter: Any, decoder: Any, purpose: str
) -> Symbols:
    """The symbols of a vocabulary of ours, with a Hugging Face tokenizer of the ids of training."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(model)
    core.pre_tokenizer, core.decoder = cutter, decoder
    marks = {mark: core.token_to_id(mark) for mark in MARKS[purpose]}
    framed = {"<s>": "<s> $A", "</s>": "$A </s>"}
    for mark in framed.keys() & marks.keys():
        core.post_processor = processors.TemplateProcessing(
            framed[mark], None, [(mark, marks[mark])]
        )
    named = {"<mask>": "mask_token", "</s>": "eos_token", "<s>": "cls_token"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # in a text "<unk>" is five characters
        **({"model_max_length": 256} if kind == "characters" else {}),
        **{named[mark]: mark for mark in marks},
    )
    size = core.get_vocab_size()
    return Symbols(size, 0, tokenizer, kind, UNKNOWN_ID, marks.get("<mask>"), marks.get("</s>"))
