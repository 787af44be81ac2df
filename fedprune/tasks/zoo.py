"""Families of transformers by name: small ones, to be trained from scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PURPOSES = ("causal", "masked", "seq2seq", "classify", "tag")
"""What a model is for: its head of output, and the AutoModelFor... that loads it."""


@dataclass(frozen=True)
class Need:
    """What a task asks of a model.

    Attributes:
        purpose: a name in `PURPOSES`.
        vocabulary: how many symbols there are.
        length: the longest sequence.
        pad: id of the padding.
        end: id that ends a written text, for "seq2seq".
        classes: how many, for "classify" and "tag".
        names: what they are called, in their order.
        depth: blocks of a stack; T5 has two stacks of so many.
        width: of the hidden states; a multiple of `HEAD`, one attention head for each.
    """

    purpose: str
    vocabulary: int
    length: int
    pad: int = 0
    end: int | None = None
    classes: int = 0
    names: tuple[str, ...] = ()
    depth: int = 2
    width: int = 64

    @property
    def heads(self) -> int:
        """How many attention heads."""
        return self.width // HEAD

    @property
    def gated(self) -> int:
        """Neurons of a gated feed-forward layer: three matrices about as large as two of 4."""
        return self.width * 11 // 4


@dataclass(frozen=True)
class Family:
    """A small architecture.

    Attributes:
        summary: one line about it.
        purposes: what it can be for, names in `PURPOSES`.
        config: its configuration.
        prepare: what is done to a model that was just initialised.
    """

    summary: str
    purposes: tuple[str, ...]
    config: Callable[[Need], Any]
    prepare: Callable[[nn.Module], None] = lambda _: None


HEAD = 16
"""Width of an attention head."""


def _llama(need: Need, share: int = 1, tied: bool = False) -> Any:
    from transformers import LlamaConfig  # takes seconds: only who builds one pays

    return LlamaConfig(
        vocab_size=need.vocabulary,
        hidden_size=need.width,
        intermediate_size=need.gated,
        num_hidden_layers=need.depth,
        num_attention_heads=need.heads,
        num_key_value_heads=1 if need.heads % share else need.heads // share,
        head_dim=HEAD,
        max_position_embeddings=max(256, need.length),
        tie_word_embeddings=tied,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        # A language model has no use for it; a classifier reads the last position before it.
        pad_token_id=need.pad if need.purpose == "classify" else None,
    )


def _gpt2(need: Need) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=need.vocabulary,
        n_positions=need.length,
        n_embd=need.width,
        n_layer=need.depth,
        n_head=need.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=need.pad if need.purpose == "classify" else None,
    )


def _bert_sizes(need: Need) -> dict[str, Any]:
    return {
        "vocab_size": need.vocabulary,
        "hidden_size": need.width,
        "num_hidden_layers": need.depth,
        "num_attention_heads": need.heads,
        "intermediate_size": 4 * need.width,
        "initializer_range": 0.1,  # 0.02 is for a width of 768
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "use_cache": False,
        "pad_token_id": need.pad,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _bert(need: Need) -> Any:
    from transformers import BertConfig

    return BertConfig(max_position_embeddings=need.length, **_bert_sizes(need))


def _roberta(need: Need) -> Any:
    from transformers import RobertaConfig

    # Its positions are counted from the one after the padding's id.
    positions = need.length + need.pad + 1
    return RobertaConfig(max_position_embeddings=positions, type_vocab_size=1, **_bert_sizes(need))


@torch.no_grad()
def _waves(model: nn.Module) -> None:
    """Let learned positions start as sinusoids (Vaswani et al. 2017, arXiv 1706.03762, 3.5).

    From random ones a small encoder does not find out in 1,500 steps which symbols are neighbours:
    perplexity of hidden characters 18.6, and 10.7 from these.
    """
    embeddings: Any = model.base_model
    table = embeddings.embeddings.position_embeddings.weight
    rows, width = table.shape
    steps = 10_000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(rows).unsqueeze(1) * steps
    table[:, 0::2] = 0.2 * angles.sin()
    table[:, 1::2] = 0.2 * angles.cos()


def _t5(need: Need, projection: str = "relu", inner: int | None = None) -> Any:
    from transformers import T5Config

    sizes: dict[str, Any] = {
        "vocab_size": need.vocabulary,
        "d_model": need.width,
        "d_kv": HEAD,
        "d_ff": inner or 4 * need.width,
        "num_layers": need.depth,
        "num_heads": need.heads,
        "dropout_rate": 0.0,
        "feed_forward_proj": projection,
        "use_cache": False,
        "pad_token_id": need.pad,
        "decoder_start_token_id": need.pad,
        "eos_token_id": need.end,
    }
    return T5Config(**sizes)


FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LLaMA: rotary positions, gated feed-forward, head not tied",
        ("causal", "classify", "tag"),
        _llama,
    ),
    "llama-gqa": Family(
        "LLaMA with groups of two heads that share keys and values",
        ("causal", "classify", "tag"),
        lambda need: _llama(need, share=2),
    ),
    "llama-tied": Family(
        "LLaMA whose head is its embeddings", ("causal",), lambda need: _llama(need, tied=True)
    ),
    "gpt2": Family(
        "GPT-2: fused q, k, v in Conv1D, head tied", ("causal", "classify", "tag"), _gpt2
    ),
    "bert": Family("BERT: post-norm encoder", ("masked", "classify", "tag"), _bert, _waves),
    "roberta": Family(
        "RoBERTa: BERT with its own positions", ("masked", "classify", "tag"), _roberta, _waves
    ),
    "t5": Family("T5: encoder and decoder, ReLU feed-forward, head tied", ("seq2seq",), _t5),
    "t5-gated": Family(
        "T5 1.1: gated GELU feed-forward; tied too, as transformers 5 ties every T5",
        ("seq2seq",),
        lambda need: _t5(need, "gated-gelu", need.gated),
    ),
}
"""Two layers (T5: two and two) of width 64 with four heads, unless ``--depth`` and ``--width`` say
otherwise: 0.1 to 0.3 million parameters."""


def families_for(purpose: str, first: str) -> dict[str, str]:
    """`Task.models` of a purpose: names and a line about each, the default first."""
    fit = {name: f.summary for name, f in FAMILIES.items() if purpose in f.purposes}
    return {first: fit[first], **fit}


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that are a model's head of output, found by kind.

    A language model's is what it says are its output embeddings; a classifier's the last linear
    layer with one output a class. What is tied to a head shares its parameters.
    """
    names: Mapping[int, str] = {id(m): name for name, m in model.named_modules()}
    ask: Any = model
    head = ask.get_output_embeddings()
    if head is not None:
        return (names[id(head)],)
    classes = ask.config.num_labels
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    return (names[id(linear[-1])],) if linear else ()
