"""GPT-2: queries, keys and values made by one layer, of the kind Conv1D; head tied."""

from __future__ import annotations

from typing import Any

from fedprune.structure.families.family import ConfigKeys, Family, Frame, Need, SmallModel, SubLayer
from fedprune.structure.low_rank_layers import inputs


def _config(need: Need) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=need.vocabulary,
        n_positions=need.length,
        n_embd=need.width,
        n_layer=need.depth,
        n_head=need.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=need.pad if need.purpose == "classify" else None,
    )


GPT2 = Family(
    "gpt2",
    sublayers={
        "GPT2Attention": SubLayer(
            "head",
            ("c_attn", "q_attn"),
            "c_proj",
            lambda m: int(m.head_dim),
            frame=Frame(
                {"attn": "ln_1", "crossattention": "ln_cross_attn"}, "resid_dropout", ("",)
            ),
        ),
        "GPT2MLP": SubLayer("neuron", ("c_fc",), "c_proj", frame=Frame({"mlp": "ln_2"}, "dropout")),
    },
    config=ConfigKeys("n_inner", {"h": "n_layer"}),
    small={
        "gpt2": SmallModel(
            "GPT-2: fused q, k, v in Conv1D, head tied", ("causal", "classify", "tag"), _config
        )
    },
    sizes={
        "GPT2Attention": {
            "split_size": lambda m: inputs(m.c_proj),
            "num_heads": lambda m: inputs(m.c_proj) // m.head_dim,
        }
    },
)
