"""ModernBERT: an encoder with rotary positions, gates, and windows in most of its blocks."""

from __future__ import annotations

from typing import Any

from fedprune.structure.families.family import ConfigKeys, Family, Frame, Need, SmallModel, SubLayer
from fedprune.structure.families.llama import states


def _config(need: Need) -> Any:
    from transformers import ModernBertConfig

    return ModernBertConfig(
        vocab_size=need.vocabulary,
        hidden_size=need.width,
        intermediate_size=need.gated,
        num_hidden_layers=need.depth,
        num_attention_heads=need.heads,
        max_position_embeddings=max(256, need.length),
        local_attention=max(8, need.length // 2),
        layer_types=["sliding_attention" if i % 2 else "full_attention" for i in range(need.depth)],
        initializer_range=0.1,  # 0.02 is for a width of 768
        pad_token_id=need.pad,
        cls_token_id=None,
        sep_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


MODERNBERT = Family(
    "modernbert",
    sublayers={
        "ModernBertAttention": SubLayer(
            "head",
            ("Wqkv",),
            "Wo",
            lambda m: int(m.head_dim),
            alike=lambda _: "rows",
            frame=Frame({"attn": "attn_norm"}, "out_drop", ("",)),
        ),
        "ModernBertMLP": SubLayer("neuron", ("Wi",), "Wo", frame=Frame({"mlp": "mlp_norm"})),
    },
    config=ConfigKeys("intermediate_size", {"layers": "num_hidden_layers"}),
    small={
        "modernbert": SmallModel(
            "ModernBERT: rotary positions, gates, every other block with a window",
            ("masked", "classify", "tag"),
            _config,
        )
    },
    passes={"ModernBertEncoderLayer": states},
)
