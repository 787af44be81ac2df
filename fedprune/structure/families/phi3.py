"""Phi-3: queries, keys and values made by one layer, gate and up by another."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fedprune.structure.families.family import (
    Family,
    Frame,
    SmallModel,
    SubLayer,
    queries_first,
)
from fedprune.structure.families.llama import CONFIG_KEYS, decoder_config, states
from fedprune.structure.low_rank_layers import inputs, outputs


class OwnConfig:
    """A model's configuration as one attention reads it, whose number of heads is its own.

    All else is the model's, to read and to write.
    """

    def __init__(self, whole: Any, heads: int) -> None:
        vars(self).update(whole=whole, num_attention_heads=heads)

    def __getattr__(self, name: str) -> Any:
        """What the model's says, of all that is not here."""
        if name.startswith("__") or name == "whole":  # a copy that is just being made
            raise AttributeError(name)
        return getattr(self.whole, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Say so in the model's."""
        setattr(self.whole, name, value)


def _count_heads(attention: nn.Module, _kept: Tensor) -> None:
    """Let a cut attention know where its queries end: it asks its configuration."""
    module: Any = attention
    module.config = OwnConfig(module.config, inputs(module.o_proj) // module.head_dim)


PHI3 = Family(
    "phi3",
    sublayers={
        "Phi3Attention": SubLayer(
            "head",
            ("qkv_proj",),
            "o_proj",
            lambda m: int(m.head_dim),
            pieces=queries_first,
            alike=lambda _: "rows",
            frame=Frame({"self_attn": "input_layernorm"}, rest=("",)),
            after_cut=_count_heads,
        ),
        "Phi3MLP": SubLayer(
            "neuron",
            ("gate_up_proj",),
            "down_proj",
            frame=Frame({"mlp": "post_attention_layernorm"}),
        ),
    },
    config=CONFIG_KEYS,
    small={
        "phi3": SmallModel(
            "Phi-3: queries, keys and values in one layer, gate and up in one, grouped queries",
            ("causal",),
            decoder_config("Phi3Config", share=2),
        )
    },
    sizes={
        "Phi3Attention": {
            "num_key_value_heads": lambda m: (
                (outputs(m.qkv_proj) - inputs(m.o_proj)) // (2 * m.head_dim)
            )
        }
    },
    passes={"Phi3DecoderLayer": states},
)
