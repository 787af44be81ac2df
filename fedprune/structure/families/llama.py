"""LLaMA: rotary positions, gated feed-forward, grouped queries."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedprune.structure.families.family import (
    HEAD,
    ConfigKeys,
    Family,
    Frame,
    Need,
    SmallModel,
    SubLayer,
)
from fedprune.structure.low_rank_layers import inputs


def _config(need: Need, share: int = 1, tied: bool = False) -> Any:
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


def _heads(config: Any, kept: int) -> dict[str, int]:
    shared = config.num_attention_heads // config.num_key_value_heads
    heads = {"num_key_value_heads": kept, "num_attention_heads": kept * shared}
    return {**heads, "head_dim": config.head_dim}


def _states(hidden_states: Tensor, *_args: object, **_given: object) -> Tensor:
    return hidden_states


LLAMA = Family(
    "llama",
    sublayers={
        "LlamaAttention": SubLayer(
            "head",
            ("q_proj", "k_proj", "v_proj"),
            "o_proj",
            lambda m: int(m.head_dim),
            Frame({"self_attn": "input_layernorm"}, rest=("",)),
        ),
        "LlamaMLP": SubLayer(
            "neuron",
            ("gate_proj", "up_proj"),
            "down_proj",
            frame=Frame({"mlp": "post_attention_layernorm"}),
        ),
    },
    config=ConfigKeys("intermediate_size", {"layers": "num_hidden_layers"}, _heads),
    small={
        "llama": SmallModel(
            "LLaMA: rotary positions, gated feed-forward, head not tied",
            ("causal", "classify", "tag"),
            _config,
        ),
        "llama-gqa": SmallModel(
            "LLaMA with groups of two heads that share keys and values",
            ("causal", "classify", "tag"),
            lambda need: _config(need, share=2),
        ),
        "llama-tied": SmallModel(
            "LLaMA whose head is its embeddings",
            ("causal",),
            lambda need: _config(need, tied=True),
        ),
    },
    sizes={"LlamaMLP": {"intermediate_size": lambda m: inputs(m.down_proj)}},
    passes={"LlamaDecoderLayer": _states},
)
