"""T5: encoder and decoder, one table of position biases for each stack."""

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
from fedprune.structure.families.t5_positions import (
    attend_with,
    drop_unread,
    kept_tables,
    positions_in_place_of,
)
from fedprune.structure.low_rank_layers import inputs


def _config(need: Need, projection: str = "relu", inner: int | None = None) -> Any:
    from transformers import T5Config

    sizes: dict[str, Any] = {
        "vocab_size": need.vocabulary,
        "d_model": need.width,
        "d_kv": HEAD,
        "d_ff": inner or 4 * need.width,
        "num_layers": need.depth,
        "num_heads": need.heads,
        "dropout_rate": 0.0,
        "feed_forward_proj": projection,
        "use_cache": False,
        "pad_token_id": need.pad,
        "decoder_start_token_id": need.pad,
        "eos_token_id": need.end,
    }
    return T5Config(**sizes)


def _states_and_biases(
    hidden_states: Tensor,
    attention_mask: object = None,  # noqa: ARG001
    position_bias: Tensor | None = None,
    encoder_hidden_states: object = None,  # noqa: ARG001
    encoder_attention_mask: object = None,  # noqa: ARG001
    encoder_decoder_position_bias: Tensor | None = None,
    **_given: object,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return hidden_states, position_bias, encoder_decoder_position_bias


_NORMS = dict.fromkeys(("SelfAttention", "EncDecAttention", "DenseReluDense"), "layer_norm")

T5 = Family(
    "t5",
    sublayers={
        "T5Attention": SubLayer(
            "head",
            ("q", "k", "v"),
            "o",
            lambda m: int(m.key_value_proj_dim),
            # Within a stack a bias for each head is added to the products.
            alike=lambda path: "" if path.endswith("SelfAttention") else "products",
            frame=Frame(_NORMS, rest=("position_bias", "")),
            after_cut=attend_with,
            stand_in=positions_in_place_of,
        ),
        "T5DenseActDense": SubLayer("neuron", ("wi",), "wo", frame=Frame(_NORMS)),
        "T5DenseGatedActDense": SubLayer("neuron", ("wi_0", "wi_1"), "wo", frame=Frame(_NORMS)),
    },
    config=ConfigKeys(
        "d_ff",
        {"encoder.block": "num_layers", "decoder.block": "num_decoder_layers"},
        lambda _, kept: {"num_heads": kept},
    ),
    small={
        "t5": SmallModel(
            "T5: encoder and decoder, ReLU feed-forward, head tied", ("seq2seq",), _config
        ),
        "t5-gated": SmallModel(
            "T5 1.1: gated GELU feed-forward; tied too, as transformers 5 ties every T5",
            ("seq2seq",),
            lambda need: _config(need, "gated-gelu", need.gated),
        ),
    },
    sizes={
        "T5Attention": {
            "inner_dim": lambda m: inputs(m.o),
            "n_heads": lambda m: inputs(m.o) // m.key_value_proj_dim,
        }
    },
    passes={"T5Block": _states_and_biases},
    tidy=drop_unread,
    kept_tables=kept_tables,
)
