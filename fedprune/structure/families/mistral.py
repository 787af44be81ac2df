"""Mistral: LLaMA with a window of attention."""

from __future__ import annotations

from typing import Any

from fedprune.structure.families.family import Need, SmallModel
from fedprune.structure.families.llama import built_like_llama, decoder_sizes


def _config(need: Need) -> Any:
    from transformers import MistralConfig

    window = max(8, need.length // 2)
    return MistralConfig(sliding_window=window, **decoder_sizes(need, share=2))


MISTRAL = built_like_llama(
    "mistral",
    "Mistral",
    {
        "mistral": SmallModel(
            "Mistral: LLaMA with a window of half the length, grouped queries",
            ("causal",),
            _config,
        )
    },
)
