"""A tokenizer as llama.cpp has it: a vocabulary, merges, and the name of how it cuts texts.

How a text is cut before merges is a name in llama.cpp (``tokenizer.ggml.pre``), not a pattern, so
only the patterns that have a name can be held (``src/llama-vocab.cpp``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedprune.export.decoder import Unheld
from fedprune.tasks.tokenization import byte_names

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in GGUF."""

_WORDS = r"\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{_WORDS % '{1,3}'}": "llama-bpe",
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{_WORDS % ''}": "qwen2",
}
"""Patterns of tokenizers to llama.cpp's name for them."""

_SPACE = "\u2581"
"""What SentencePiece has for a space."""


@dataclass(frozen=True)
class GgufVocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: "gpt2" for merges of bytes, "llama" for SentencePiece's merges of characters.
        pre: llama.cpp's name of how texts are cut; "" of "llama".
        tokens: by id.
        types: of each token.
        scores: of each token; empty of "gpt2".
        merges: in order; empty of "llama".
        marks: ids of special tokens by their role: "bos", "eos", "unk", "pad".
        begins: whether a text is given "bos".
        ends: whether a text is given "eos".
        spaced: whether a text is read as if it began with a space.
        chat: the template of conversations.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    marks: Mapping[str, int]
    begins: bool
    ends: bool
    spaced: bool
    chat: str | None

    def write(self, writer: Any) -> None:
        """Put the keys into a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_scores(self.scores)
        writer.add_token_merges(self.merges)
        for role, id_ in self.marks.items():
            getattr(writer, f"add_{role}_token_id")(id_)
        writer.add_add_bos_token(self.begins)
        writer.add_add_eos_token(self.ends)
        writer.add_add_space_prefix(self.spaced)
        if self.chat:
            writer.add_chat_template(self.chat)


def gguf_vocabulary(tokenizer: Any, size: int) -> GgufVocabulary:
    """What llama.cpp is told of a tokenizer.

    Args:
        tokenizer: a fast one of transformers.
        size: rows of the embeddings; ids that no token has are unused ones.

    Raises:
        Unheld: it cuts texts in a way that llama.cpp has no name for.
    """
    about = json.loads(tokenizer.backend_tokenizer.to_str())
    model, kind = about["model"], about["model"]["type"]
    if kind == "WordLevel" and all(len(t) == 1 or t in _added(about) for t in model["vocab"]):
        model, parts = _of_characters(model), ("gpt2", "gpt-2", False)
    elif kind == "BPE" and any(s["type"] == "ByteLevel" for s in _steps(about["pre_tokenizer"])):
        parts = ("gpt2", _name_of_cuts(about), False)
    elif kind == "BPE" and model.get("byte_fallback"):
        steps = _steps(about["normalizer"]) + _steps(about["pre_tokenizer"])
        schemes = {(s.get("prepend"), s.get("prepend_scheme")) for s in steps}
        spaced = any(p == _SPACE or scheme in ("first", "always") for p, scheme in schemes)
        parts = ("llama", "default", spaced)
    else:
        raise Unheld(
            f"tokenizer: {kind} with {_kind_of(about['pre_tokenizer'])}, llama.cpp has no name for "
            "it; held are BPE of bytes, BPE of SentencePiece with bytes for the rest, and the "
            "small tokenizers of fedprune"
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", ())]
    tokens, types = _tokens(about, model, size)
    ids, bare = (tokenizer("a", add_special_tokens=s).input_ids for s in (True, False))
    chat = tokenizer.chat_template
    bytes_ = parts[0] == "gpt2"
    return GgufVocabulary(
        *parts[:2],
        tokens,
        types,
        [] if bytes_ else _scores(tokens, merges),
        (merges or [_NEVER]) if bytes_ else [],
        _marks(tokenizer),
        ids[:1] != bare[:1],
        ids[-1:] != bare[-1:],
        parts[2],
        chat.get("default") if isinstance(chat, dict) else chat,
    )


_NEVER = "<pad> <pad>"
"""A merge that never happens: llama.cpp wants a list of merges, and GGUF has no empty lists."""


def _added(about: Mapping[str, Any]) -> dict[str, Any]:
    return {token["content"]: token for token in about["added_tokens"]}


def _of_characters(model: Mapping[str, Any]) -> dict[str, Any]:
    """A vocabulary of ASCII characters as one of bytes: the same ids for the same texts."""
    names = byte_names()
    known = {
        names[ord(t)] if len(t) == 1 and t.isascii() else t: i for t, i in model["vocab"].items()
    }
    return {**model, "vocab": known}


def _steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A tokenizer's step as a list of simple ones."""
    if step is None:
        return []
    inner = step.get("pretokenizers") or step.get("normalizers")
    return [step] if inner is None else [s for part in inner for s in _steps(part)]


def _kind_of(step: Mapping[str, Any] | None) -> str:
    return " and ".join(s["type"] for s in _steps(step)) or "no cuts"


def _name_of_cuts(about: Mapping[str, Any]) -> str:
    *first, last = _steps(about["pre_tokenizer"])
    if not about["model"].get("merges"):
        return "gpt-2"  # without merges every byte is a token, however texts are cut
    plain = not last.get("add_prefix_space") and last["type"] == "ByteLevel"
    if plain and last.get("use_regex", True):
        digits = [s for s in first if s["type"] == "Digits" and s["individual_digits"]]
        if not first:
            return "gpt-2"
        if len(digits) == len(first) == 1:
            return "smollm"
    elif plain and len(first) == 1 and first[0]["type"] == "Split":
        name = _CUTS.get(first[0]["pattern"].get("Regex", ""))
        if name is not None:
            return name
    raise Unheld(
        f"tokenizer: cuts texts by {_kind_of(about['pre_tokenizer'])} in a way that llama.cpp has "
        f"no name for; held are the cuts of gpt-2, smollm, {', '.join(_CUTS.values())}"
    )


def _tokens(
    about: Mapping[str, Any], model: Mapping[str, Any], size: int
) -> tuple[list[str], list[int]]:
    """Tokens and their types, by id."""
    added = _added(about)
    by_id = {i: t for t, i in model["vocab"].items()} | {a["id"]: t for t, a in added.items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]

    def kind(i: int, token: str) -> int:
        if i not in by_id:
            return UNUSED
        if token == model.get("unk_token"):
            return UNKNOWN
        if token in added:
            return CONTROL if added[token]["special"] else USER_DEFINED
        is_byte = model.get("byte_fallback") and len(token) == 6 and token[:3] == "<0x"
        return BYTE if is_byte else NORMAL

    return tokens, [kind(i, token) for i, token in enumerate(tokens)]


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """The earlier a token's merge, the higher: SentencePiece takes the highest of two first."""
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), -float(rank))
    return [ranks.get(token, -float(len(merges))) for token in tokens]


def _marks(tokenizer: Any) -> dict[str, int]:
    """Ids by role. Without an end of text llama.cpp would take token 11 for it."""
    found = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk", "pad")}
    known = {role: id_ for role, id_ in found.items() if id_ is not None}
    stand_in = next((known[r] for r in ("eos", "pad", "unk", "bos") if r in known), None)
    return known if stand_in is None else {"bos": stand_in, "eos": stand_in, **known}
