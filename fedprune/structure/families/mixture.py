"""Mixtral, Qwen2-MoE and Qwen3-MoE: LLaMA whose feed-forward layers are mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedprune.structure.families.family import ConfigKeys, Family, Need, SmallModel
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


def _mixtral(need: Need) -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(**_sizes(need, "num_local_experts", "intermediate_size"))


def _qwen2(need: Need) -> Any:
    from transformers import Qwen2MoeConfig

    sizes = _sizes(need, "num_experts", "moe_intermediate_size")
    return Qwen2MoeConfig(shared_expert_intermediate_size=need.gated // _CHOSEN, **sizes)


def _qwen3(need: Need) -> Any:
    from transformers import Qwen3MoeConfig

    sizes = _sizes(need, "num_experts", "moe_intermediate_size")
    return Qwen3MoeConfig(norm_topk_prob=True, **sizes)


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
    model_type: str,
    prefix: str,
    keys: ConfigKeys,
    small: Mapping[str, SmallModel],
    *,
    whole: Sequence[str] = (),
) -> Family:
    """A family whose feed-forward layers without experts are of the classes `whole`."""
    return Family(
        model_type,
        sublayers={
            f"{prefix}Attention": attention(),
            "Expert": gated(),
            **dict.fromkeys(whole, gated()),
        },
        config=keys,
        small=small,
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
    {
        "mixtral": SmallModel(
            "Mixtral: LLaMA with four experts in a block, of which a token has two",
            ("causal",),
            _mixtral,
        )
    },
)

QWEN2_MOE = _mixture(
    "qwen2_moe",
    "Qwen2Moe",
    _keys("num_experts", _width_key, numbered=_sparse_blocks),
    {
        "qwen2-moe": SmallModel(
            "Qwen2-MoE: four experts, of which a token has two, beside one that all share",
            ("causal",),
            _qwen2,
        )
    },
    whole=("Qwen2MoeMLP",),
)

QWEN3_MOE = _mixture(
    "qwen3_moe",
    "Qwen3Moe",
    _keys("num_experts", _width_key, numbered=_sparse_blocks),
    {
        "qwen3-moe": SmallModel(
            "Qwen3-MoE: four experts, of which a token has two, norms of queries and keys",
            ("causal",),
            _qwen3,
        )
    },
    whole=("Qwen3MoeMLP",),
)
