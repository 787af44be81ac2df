"""Gemma 2 and 3: norms before and after each sub-layer, windows and whole attention by turns."""

from __future__ import annotations

from typing import Any

from fedprune.structure.families.family import HEAD, Family, Need, SmallModel, config_maker
from fedprune.structure.families.llama import CONFIG_KEYS, attention, decoder_sizes, gated, states
from fedprune.structure.low_rank_layers import inputs


def _sizes(need: Need) -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention"]
    own = {"sliding_window": max(8, need.length // 2), "query_pre_attn_scalar": HEAD}
    types = [kinds[i % 2] for i in range(need.depth)]
    return {**decoder_sizes(need, share=2, tied=True), **own, "layer_types": types}


def _gemma(model_type: str, prefix: str, config: str, summary: str) -> Family:
    small = SmallModel(summary, ("causal",), config_maker(config, _sizes))
    return Family(
        model_type,
        sublayers={
            f"{prefix}Attention": attention(after={"self_attn": "post_attention_layernorm"}),
            f"{prefix}MLP": gated(
                "pre_feedforward_layernorm", {"mlp": "post_feedforward_layernorm"}
            ),
        },
        config=CONFIG_KEYS,
        small={prefix.lower(): small},
        sizes={f"{prefix}MLP": {"intermediate_size": lambda m: inputs(m.down_proj)}},
        passes={f"{prefix}DecoderLayer": states},
    )


GEMMA2 = _gemma(
    "gemma2",
    "Gemma2",
    "Gemma2Config",
    "Gemma 2: norms before and after, capped logits, every other block with a window",
)


GEMMA3 = _gemma(
    "gemma3_text",
    "Gemma3",
    "Gemma3TextConfig",
    "Gemma 3: norms of queries and keys too, every other block with a window",
)
