"""GPT-NeoX (Pythia): queries, keys and values of a head lie together; attention beside the rest."""

from __future__ import annotations

from typing import Any

from fedprune.structure.families.family import ConfigKeys, Family, Frame, Need, SmallModel, SubLayer


def _config(need: Need) -> Any:
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        vocab_size=need.vocabulary,
        hidden_size=need.width,
        intermediate_size=4 * need.width,
        num_hidden_layers=need.depth,
        num_attention_heads=need.heads,
        max_position_embeddings=max(256, need.length),
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )


GPT_NEOX = Family(
    "gpt_neox",
    sublayers={
        "GPTNeoXAttention": SubLayer(
            "head",
            ("query_key_value",),
            "dense",
            lambda m: int(m.head_size),
            together=True,
            alike=lambda _: "rows",
            frame=Frame({"attention": "input_layernorm"}, rest=("",)),
        ),
        "GPTNeoXMLP": SubLayer(
            "neuron",
            ("dense_h_to_4h",),
            "dense_4h_to_h",
            frame=Frame({"mlp": "post_attention_layernorm"}),
        ),
    },
    config=ConfigKeys("intermediate_size", {"layers": "num_hidden_layers"}),
    small={
        "gpt-neox": SmallModel(
            "GPT-NeoX (Pythia): fused q, k, v by head, attention and feed-forward side by side",
            ("causal",),
            _config,
        )
    },
)
