"""Qwen2 and Qwen3: LLaMA with biases, or norms, of queries and keys."""

from __future__ import annotations

from typing import Any

from fedprune.structure.families.family import Need, SmallModel
from fedprune.structure.families.llama import built_like_llama, decoder_sizes


def _qwen2(need: Need) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**decoder_sizes(need, share=2, tied=True))


def _qwen3(need: Need) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**decoder_sizes(need, share=2, tied=True))


QWEN2 = built_like_llama(
    "qwen2",
    "Qwen2",
    {
        "qwen2": SmallModel(
            "Qwen2: biases of queries, keys and values, grouped queries, head tied",
            ("causal",),
            _qwen2,
        )
    },
)

QWEN3 = built_like_llama(
    "qwen3",
    "Qwen3",
    {
        "qwen3": SmallModel(
            "Qwen3: norms of queries and keys, grouped queries, head tied", ("causal",), _qwen3
        )
    },
)
