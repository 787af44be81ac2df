"""OPT: learned positions, ReLU, the feed-forward layer a part of the block."""

from __future__ import annotations

from typing import Any

from fedprune.structure.families.family import (
    ConfigKeys,
    Family,
    Frame,
    Inline,
    Need,
    SmallModel,
    SubLayer,
)
from fedprune.structure.low_rank_layers import outputs


def _config(need: Need) -> Any:
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=need.vocabulary,
        hidden_size=need.width,
        word_embed_proj_dim=need.width,
        ffn_dim=4 * need.width,
        num_hidden_layers=need.depth,
        num_attention_heads=need.heads,
        max_position_embeddings=need.length,  # of which two more rows are made
        dropout=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _norms_first(block: Any) -> bool:
    return bool(block.do_layer_norm_before)  # OPT-350m has them last


OPT = Family(
    "opt",
    sublayers={
        "OPTAttention": SubLayer(
            "head",
            ("q_proj", "k_proj", "v_proj"),
            "out_proj",
            lambda m: int(m.head_dim),
            frame=Frame({"self_attn": "self_attn_layer_norm"}, rest=("",), before=_norms_first),
        ),
        "OPTDecoderLayer": SubLayer(
            "neuron",
            ("fc1",),
            "fc2",
            frame=Inline("fc1", norms=("final_layer_norm",), before=_norms_first),
        ),
    },
    config=ConfigKeys("ffn_dim", {"layers": "num_hidden_layers"}),
    small={
        "opt": SmallModel(
            "OPT: learned positions, ReLU feed-forward, head tied", ("causal",), _config
        )
    },
    sizes={"OPTAttention": {"num_heads": lambda m: outputs(m.q_proj) // m.head_dim}},
)
