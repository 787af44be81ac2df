"""A decoder as vLLM's ``DeciLMForCausalLM``, whose blocks have sizes of their own.

Keys are those that ``vllm/model_executor/models/nemotron_nas.py`` reads. There every layer has the
same number of query heads, and KV heads and neurons of its own; a sub-layer may be none
(``no_op``). So a layer with fewer query heads is filled up with heads of zeros, and grouped so that
it has as few KV heads as that allows. Layer 0 has to have attention, a head of zeros if no other:
what begins the residual stream is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedprune.export.decoder import Decoder, DecoderLayer, Unheld, with_attention, with_neuron
from fedprune.tensors.named import Tensors

CONFIG_CODE_NAME = "configuration_decilm.py"

CONFIG_CODE = '''\
"""Read by transformers under trust_remote_code: a config whose blocks have sizes of their own."""

from transformers import LlamaConfig


class Part(dict):
    """A part of a block, its keys as attributes."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class DeciLMConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **given):
        super().__init__(**given)
        self.block_configs = [
            Part({name: Part(part) for name, part in block.items()}) for block in block_configs
        ]
'''
"""vLLM reads ``block.attention.no_op``, which a config as JSON alone has not."""


@dataclass(frozen=True)
class DeciLayer:
    """A layer as vLLM has it.

    It has so many KV heads (`groups`), each with so many query heads (`in_group`).
    """

    layer: DecoderLayer
    in_group: int
    groups: int

    @property
    def block(self) -> dict[str, dict[str, Any]]:
        """Its entry in ``block_configs``."""
        none, empty = not self.layer.heads, not self.layer.neurons
        return {
            "attention": {
                "n_heads_in_group": None if none else self.in_group,
                "no_op": none,
                "replace_with_linear": False,
            },
            # With "ffn_mult" beside it vLLM would round the size to 256.
            "ffn": {
                "intermediate_size": None if empty else self.layer.neurons,
                "no_op": empty,
                "replace_with_linear": False,
            },
        }


def deci_layers(decoder: Decoder) -> list[DeciLayer]:
    """The layers as vLLM holds them, without what they are filled up with.

    Raises:
        Unheld: query heads of a KV head differ between layers.
    """
    found = []
    for i, layer in enumerate(decoder.layers):
        biased = "self_attn.o_proj.bias" in layer.tensors
        whole = with_attention(layer, decoder) if i == 0 or biased else layer
        biased = "mlp.down_proj.bias" in layer.tensors
        found.append(with_neuron(whole, decoder) if biased else whole)
    heads = max(layer.heads for layer in found)
    return [_grouped(layer, heads) for layer in found]


def _grouped(layer: DecoderLayer, heads: int) -> DeciLayer:
    """The layer with the fewest KV heads that `heads` query heads can be dealt to."""
    if not layer.heads:
        return DeciLayer(layer, 0, 0)
    each = layer.heads // layer.groups
    fits = [n for n in range(each, heads + 1) if not heads % n and heads // n >= layer.groups]
    if not fits:
        raise Unheld(
            f"{layer.path}.self_attn: {layer.groups} KV heads of {each} query heads do not go "
            f"into {heads} query heads, which vLLM has in every layer"
        )
    return DeciLayer(layer, fits[-1], heads // fits[-1])


def deci_config(decoder: Decoder, layers: Sequence[DeciLayer], dtype: str) -> dict[str, Any]:
    """``config.json``."""
    settings = decoder.settings
    said: dict[str, Any] = {k: v for k, v in settings.to_dict().items() if not k.startswith("_")}
    qwen = settings.model_type == "qwen2"
    return {
        **said,
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {"AutoConfig": f"{CONFIG_CODE_NAME.removesuffix('.py')}.DeciLMConfig"},
        "block_configs": [layer.block for layer in layers],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(layer.in_group * layer.groups for layer in layers),
        "num_key_value_heads": max(layer.groups for layer in layers),
        "intermediate_size": max(1, *(layer.layer.neurons for layer in layers)),
        "head_dim": decoder.head,
        "rope_theta": settings.rope_parameters["rope_theta"],
        "dtype": dtype,
        **({"qkv_bias": True, "attention_bias": False} if qwen else {}),
    }


def filled_up(tensors: Mapping[str, Tensor], deci: DeciLayer, head: int) -> Tensors:
    """The tensors of a layer with heads of zeros where vLLM has more."""
    filled = {name: _dealt(name, tensor, deci, head) for name, tensor in tensors.items()}
    return {name: tensor.contiguous() for name, tensor in filled.items()}


def emptied(tensors: Mapping[str, Tensor], deci: DeciLayer, head: int) -> Tensors:
    """The inverse of `filled_up`."""
    return {name: _dealt(name, t, deci, head, back=True) for name, t in tensors.items()}


def _dealt(name: str, tensor: Tensor, deci: DeciLayer, head: int, *, back: bool = False) -> Tensor:
    """A tensor of heads in the larger numbers of them, or back."""
    each = deci.layer.heads // max(1, deci.layer.groups)
    real, whole = (deci.layer.groups, each), (deci.groups, deci.in_group)
    path, _, end = name.rpartition(".")
    if path in ("self_attn.k_proj", "self_attn.v_proj"):
        real, whole = (real[0], 1), (whole[0], 1)
    elif path != "self_attn.q_proj" and name != "self_attn.o_proj.weight":
        return tensor
    columns = path == "self_attn.o_proj" and end == "weight"
    rows = tensor.T if columns else tensor
    parts = rows.reshape(*(whole if back else real), head, *rows.shape[1:])
    if back:
        made = parts[: real[0], : real[1]]
    else:
        made = parts.new_zeros(*whole, *parts.shape[2:])
        made[: real[0], : real[1]] = parts
    flat = made.reshape(-1, *rows.shape[1:])
    return flat.T if columns else flat
