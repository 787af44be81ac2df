"""ViT: patches of an image as tokens, a token of its own for the class."""

from __future__ import annotations

from typing import Any

from fedprune.structure.families.family import ConfigKeys, Family, Frame, Need, SmallModel, SubLayer
from fedprune.structure.low_rank_layers import outputs


def patch_of(side: int) -> int:
    """Pixels of a patch's side: four to eight patches fit side by side, with the least left over.

    >>> [patch_of(side) for side in (8, 28, 31, 32)]
    [2, 7, 6, 8]
    """
    able = range(-(-side // 8), max(1, side // 4) + 1)
    return min(able, key=lambda patch: (side % patch, -patch))


def _config(need: Need) -> Any:
    from transformers import ViTConfig

    return ViTConfig(
        hidden_size=need.width,
        num_hidden_layers=need.depth,
        num_attention_heads=need.heads,
        intermediate_size=4 * need.width,
        image_size=need.length,
        patch_size=patch_of(need.length),
        num_channels=need.channels,
        initializer_range=0.1,  # 0.02 is for a width of 768
    )


VIT = Family(
    "vit",
    sublayers={
        "ViTAttention": SubLayer(
            "head",
            ("q_proj", "k_proj", "v_proj"),
            "o_proj",
            lambda m: int(m.head_dim),
            frame=Frame({"attention": "layernorm_before"}, rest=("",)),
        ),
        "ViTMLP": SubLayer("neuron", ("fc1",), "fc2", frame=Frame({"mlp": "layernorm_after"})),
    },
    config=ConfigKeys("intermediate_size", {"layers": "num_hidden_layers"}),
    small={
        "vit": SmallModel("ViT: patches as tokens, pre-norm encoder", ("image",), _config),
        "vit-grey": SmallModel("as vit, for grey images", ("image",), _config),
    },
    sizes={"ViTAttention": {"num_attention_heads": lambda m: outputs(m.q_proj) // m.head_dim}},
)
