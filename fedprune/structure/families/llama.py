"""LLaMA and those built like it, Mistral and Qwen: rotary positions, gates, grouped queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
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
    config_maker,
)
from fedprune.structure.low_rank_layers import inputs


def decoder_sizes(need: Need, share: int = 1, tied: bool = False) -> dict[str, Any]:
    """What the configurations of small models say; `share` heads have one key and value."""
    return {
        "vocab_size": need.vocabulary,
        "hidden_size": need.width,
        "intermediate_size": need.gated,
        "num_hidden_layers": need.depth,
        "num_attention_heads": need.heads,
        "num_key_value_heads": 1 if need.heads % share else need.heads // share,
        "head_dim": HEAD,
        "max_position_embeddings": max(256, need.length),
        "tie_word_embeddings": tied,
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
        # A language model has no use for it; a classifier reads the last position before it.
        "pad_token_id": need.pad if need.purpose == "classify" else None,
    }


def decoder_config(name: str, share: int = 1, tied: bool = False) -> Callable[[Need], Any]:
    """`SmallModel.config` of a class of configurations that say no more."""
    return config_maker(name, lambda need: decoder_sizes(need, share, tied))


def heads_of_their_own(config: Any, kept: int) -> dict[str, int]:
    """The keys of a config that counts KV groups, heads and the size of one apart."""
    shared = config.num_attention_heads // config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = {"num_key_value_heads": kept, "num_attention_heads": kept * shared}
    return {**heads, "head_dim": size}


def states(hidden_states: Tensor, *_args: object, **_given: object) -> Tensor:
    """What a block says that has nothing left."""
    return hidden_states


def attention(norm: str = "input_layernorm", after: Mapping[str, str] | None = None) -> SubLayer:
    """Queries, keys and values by layers of their own, turned by their places."""
    return SubLayer(
        "head",
        ("q_proj", "k_proj", "v_proj"),
        "o_proj",
        lambda m: int(m.head_dim),
        alike=lambda _: "rows",
        frame=Frame({"self_attn": norm}, rest=("",), after=after or {}),
    )


def gated(
    norm: str = "post_attention_layernorm", after: Mapping[str, str] | None = None
) -> SubLayer:
    """A feed-forward layer with a gate."""
    frame = Frame({"mlp": norm}, after=after or {})
    return SubLayer("neuron", ("gate_proj", "up_proj"), "down_proj", frame=frame)


CONFIG_KEYS = ConfigKeys("intermediate_size", {"layers": "num_hidden_layers"}, heads_of_their_own)


def built_like_llama(
    model_type: str,
    prefix: str,
    small: Mapping[str, SmallModel],
    biases: Mapping[str, str] | None = None,
) -> Family:
    """A family whose attention, feed-forward layer and block are LLaMA's, under another name."""
    return Family(
        model_type,
        sublayers={f"{prefix}Attention": attention(), f"{prefix}MLP": gated()},
        config=replace(CONFIG_KEYS, biases=biases or {}),
        small=small,
        sizes={f"{prefix}MLP": {"intermediate_size": lambda m: inputs(m.down_proj)}},
        passes={f"{prefix}DecoderLayer": states},
        norms=f"{prefix}RMSNorm",
    )


LLAMA = built_like_llama(
    "llama",
    "Llama",
    {
        "llama": SmallModel(
            "LLaMA: rotary positions, gated feed-forward, head not tied",
            ("causal", "classify", "tag"),
            decoder_config("LlamaConfig"),
        ),
        "llama-gqa": SmallModel(
            "LLaMA with groups of two heads that share keys and values",
            ("causal", "classify", "tag"),
            decoder_config("LlamaConfig", share=2),
        ),
        "llama-tied": SmallModel(
            "LLaMA whose head is its embeddings",
            ("causal",),
            decoder_config("LlamaConfig", tied=True),
        ),
    },
    {"o_proj": "attention_bias", "down_proj": "mlp_bias"},
)


def _mistral_sizes(need: Need) -> dict[str, Any]:
    return {**decoder_sizes(need, share=2), "sliding_window": max(8, need.length // 2)}


MISTRAL = built_like_llama(
    "mistral",
    "Mistral",
    {
        "mistral": SmallModel(
            "Mistral: LLaMA with a window of half the length, grouped queries",
            ("causal",),
            config_maker("MistralConfig", _mistral_sizes),
        )
    },
)


QWEN2 = built_like_llama(
    "qwen2",
    "Qwen2",
    {
        "qwen2": SmallModel(
            "Qwen2: biases of queries, keys and values, grouped queries, head tied",
            ("causal",),
            decoder_config("Qwen2Config", share=2, tied=True),
        )
    },
)

QWEN3 = built_like_llama(
    "qwen3",
    "Qwen3",
    {
        "qwen3": SmallModel(
            "Qwen3: norms of queries and keys, grouped queries, head tied",
            ("causal",),
            decoder_config("Qwen3Config", share=2, tied=True),
        )
    },
)
