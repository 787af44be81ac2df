"""Mixtral, Qwen2-MoE and Qwen3-MoE: LLaMA whose feed-forward layers are mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedprune.structure.families.family import ConfigKeys, Family, Need, SmallModel, config_maker
from fedprune.structure.families.llama import (
    attention,
    decoder_sizes,
    gated,
    heads_of_their_own,
    states,
)
from fedprune.structure.low_rank_layers import inputs

_EXPERTS, _CHOSEN = 4, 2
"""Of the small models: experts of a block, and how many of them a token is sent to."""


def _sizes(need: Need, experts: str, width: str) -> dict[str, Any]:
    """What small models say; all experts together are twice as wide as LLaMA's one layer."""
    own = {experts: _EXPERTS, "num_experts_per_tok": _CHOSEN}
    return {**decoder_sizes(need, share=2), **own, width: need.gated // _CHOSEN}


def _qwen2(need: Need) -> dict[str, Any]:
    shared = {"shared_expert_intermediate_size": need.gated // _CHOSEN}
    return {**_sizes(need, "num_experts", "moe_intermediate_size"), **shared}


def _qwen3(need: Need) -> dict[str, Any]:
    return {**_sizes(need, "num_experts", "moe_intermediate_size"), "norm_topk_prob": True}


def _width_key(path: str) -> str:
    """The key of a feed-forward layer's neurons: of an expert, of one that all share, of others."""
    if ".experts." in path:
        return "moe_intermediate_size"
    return "shared_expert_" * path.endswith(".shared_expert") + "intermediate_size"


def _sparse_blocks(config: Any, stays: Sequence[bool]) -> dict[str, Any]:
    """Which of the blocks that stay are no mixtures, by their new number."""
    dense = [
        i in config.mlp_only_layers or (i + 1) % config.decoder_sparse_step != 0
        for i in range(len(stays))
    ]
    left = [one for one, stay in zip(dense, stays, strict=True) if stay]
    return {"decoder_sparse_step": 1, "mlp_only_layers": [i for i, one in enumerate(left) if one]}


def _mixture(
    name: str,
    prefix: str,
    keys: ConfigKeys,
    summary: str,
    sizes: Callable[[Need], dict[str, Any]],
    *,
    whole: Sequence[str] = (),
) -> Family:
    """A family whose feed-forward layers without experts are of the classes `whole`."""
    small = SmallModel(summary, ("causal",), config_maker(f"{prefix}Config", sizes))
    return Family(
        name.replace("-", "_"),
        sublayers={
            f"{prefix}Attention": attention(),
            "Expert": gated(),
            **dict.fromkeys(whole, gated()),
        },
        config=keys,
        small={name: small},
        mixtures=(f"{prefix}SparseMoeBlock",),
        sizes={name: {"intermediate_size": lambda m: inputs(m.down_proj)} for name in whole},
        passes={f"{prefix}DecoderLayer": states},
    )


def _keys(experts: str, neurons: str | Callable[[str], str], **more: Any) -> ConfigKeys:
    layers = {"layers": "num_hidden_layers"}
    return ConfigKeys(neurons, layers, heads_of_their_own, experts=experts, **more)


MIXTRAL = _mixture(
    "mixtral",
    "Mixtral",
    _keys("num_local_experts", "intermediate_size"),
    "Mixtral: LLaMA with four experts in a block, of which a token has two",
    lambda need: _sizes(need, "num_local_experts", "intermediate_size"),
)

QWEN2_MOE = _mixture(
    "qwen2-moe",
    "Qwen2Moe",
    _keys("num_experts", _width_key, numbered=_sparse_blocks),
    "Qwen2-MoE: four experts, of which a token has two, beside one that all share",
    _qwen2,
    whole=("Qwen2MoeMLP",),
)

QWEN3_MOE = _mixture(
    "qwen3-moe",
    "Qwen3Moe",
    _keys("num_experts", _width_key, numbered=_sparse_blocks),
    "Qwen3-MoE: four experts, of which a token has two, norms of queries and keys",
    _qwen3,
    whole=("Qwen3MoeMLP",),
)
