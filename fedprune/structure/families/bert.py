"""BERT, RoBERTa and ELECTRA: encoders whose norms come after what was added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedprune.structure.families.family import (
    ConfigKeys,
    Family,
    Inline,
    Need,
    Sizes,
    SmallModel,
    SubLayer,
)
from fedprune.structure.low_rank_layers import outputs


def _sizes_of(need: Need) -> dict[str, Any]:
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

    return BertConfig(max_position_embeddings=need.length, **_sizes_of(need))


def _roberta(need: Need) -> Any:
    from transformers import RobertaConfig

    # Its positions are counted from the one after the padding's id.
    positions = need.length + need.pad + 1
    return RobertaConfig(max_position_embeddings=positions, type_vocab_size=1, **_sizes_of(need))


def _electra(need: Need) -> Any:
    from transformers import ElectraConfig

    # Its embeddings are narrower than its states, and projected.
    return ElectraConfig(
        embedding_size=need.width // 2,
        max_position_embeddings=need.length,
        **_sizes_of(need),
    )


@torch.no_grad()
def sinusoids(model: nn.Module) -> None:
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


_ATTENTION = SubLayer(
    "head",
    ("self.query", "self.key", "self.value"),
    "output.dense",
    lambda m: int(m.self.attention_head_size),
    frame=Inline("self", answers=True),
)
_FEED_FORWARD = SubLayer(
    "neuron", ("intermediate.dense",), "output.dense", frame=Inline("intermediate")
)
_HEADS: Sizes = {
    "num_attention_heads": lambda m: outputs(m.query) // m.attention_head_size,
    "all_head_size": lambda m: outputs(m.query),
}
_KEYS = ConfigKeys("intermediate_size", {"encoder.layer": "num_hidden_layers"})
_PURPOSES = ("masked", "classify", "tag")


def _like_bert(name: str, prefix: str, summary: str, config: Callable[[Need], Any]) -> Family:
    """A family of BERT's modules, whose classes begin with a prefix."""
    return Family(
        name,
        sublayers={f"{prefix}Attention": _ATTENTION, f"{prefix}Layer": _FEED_FORWARD},
        config=_KEYS,
        small={name: SmallModel(summary, _PURPOSES, config, sinusoids)},
        sizes={f"{prefix}SelfAttention": _HEADS, f"{prefix}CrossAttention": _HEADS},
    )


BERT = _like_bert("bert", "Bert", "BERT: post-norm encoder", _bert)
ELECTRA = _like_bert(
    "electra", "Electra", "ELECTRA: BERT whose embeddings are half as wide", _electra
)
ROBERTA = _like_bert("roberta", "Roberta", "RoBERTa: BERT with its own positions", _roberta)
