"""DistilBERT: BERT with half the layers, without types of tokens."""

from __future__ import annotations

from typing import Any

from fedprune.structure.families.bert import sinusoids
from fedprune.structure.families.family import (
    ConfigKeys,
    Family,
    Frame,
    Need,
    SmallModel,
    SubLayer,
)
from fedprune.structure.low_rank_layers import outputs


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
