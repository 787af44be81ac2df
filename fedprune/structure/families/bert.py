"""BERT, RoBERTa, ELECTRA and DistilBERT: encoders whose norms come after what was added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedprune.structure.families.family import (
    ConfigKeys,
    Family,
    Frame,
    Inline,
    Need,
    Sizes,
    SmallModel,
    SubLayer,
    config_maker,
)
from fedprune.structure.low_rank_layers import outputs


def _sizes_of(need: Need) -> dict[str, Any]:
    return {
        "vocab_size": need.vocabulary,
        "hidden_size": need.width,
        "max_position_embeddings": need.length,
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


def _sizes_of_roberta(need: Need) -> dict[str, Any]:
    # Its positions are counted from the one after the padding's id.
    positions = need.length + need.pad + 1
    return {**_sizes_of(need), "max_position_embeddings": positions, "type_vocab_size": 1}


def _sizes_of_electra(need: Need) -> dict[str, Any]:
    # Its embeddings are narrower than its states, and projected.
    return {**_sizes_of(need), "embedding_size": need.width // 2}


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


def _like_bert(
    name: str, prefix: str, summary: str, sizes: Callable[[Need], dict[str, Any]] = _sizes_of
) -> Family:
    """A family of BERT's modules, whose classes begin with a prefix."""
    return Family(
        name,
        sublayers={f"{prefix}Attention": _ATTENTION, f"{prefix}Layer": _FEED_FORWARD},
        config=_KEYS,
        small={
            name: SmallModel(summary, _PURPOSES, config_maker(f"{prefix}Config", sizes), sinusoids)
        },
        sizes={f"{prefix}SelfAttention": _HEADS, f"{prefix}CrossAttention": _HEADS},
    )


BERT = _like_bert("bert", "Bert", "BERT: post-norm encoder")
ELECTRA = _like_bert(
    "electra", "Electra", "ELECTRA: BERT whose embeddings are half as wide", _sizes_of_electra
)
ROBERTA = _like_bert(
    "roberta", "Roberta", "RoBERTa: BERT with its own positions", _sizes_of_roberta
)


def _config(need: Need) -> Any:
    from transformers import DistilBertConfig

    return DistilBertConfig(
        vocab_size=need.vocabulary,
        dim=need.width,
        n_layers=need.depth,
        n_heads=need.heads,
        hidden_dim=4 * need.width,
        max_position_embeddings=need.length,
        initializer_range=0.1,  # 0.02 is for a width of 768
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        pad_token_id=need.pad,
    )


DISTILBERT = Family(
    "distilbert",
    sublayers={
        "DistilBertSelfAttention": SubLayer(
            "head",
            ("q_lin", "k_lin", "v_lin"),
            "out_lin",
            lambda m: int(m.attention_head_size),
            frame=Frame({}, rest=("",)),
        ),
        "FFN": SubLayer("neuron", ("lin1",), "lin2", frame=Frame({}, "dropout")),
    },
    config=ConfigKeys("hidden_dim", {"transformer.layer": "n_layers"}),
    small={
        "distilbert": SmallModel(
            "DistilBERT: BERT without types of tokens",
            ("masked", "classify", "tag"),
            _config,
            sinusoids,
        )
    },
    sizes={
        "DistilBertSelfAttention": {
            "n_heads": lambda m: outputs(m.q_lin) // m.attention_head_size,
            "dim": lambda m: outputs(m.q_lin),
        }
    },
)
