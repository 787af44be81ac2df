"""A decoder as a GGUF file of llama.cpp, written tensor by tensor.

Keys and names are those of llama.cpp's ``conversion/llama.py`` and ``conversion/deci.py``. Layers
that are all alike make the architecture ``llama`` (or ``qwen2``); others make ``deci``, which holds
the numbers of heads, KV heads and neurons of each layer (``src/models/deci.cpp``). Two things of
that graph decide what stands for what is gone: a layer without neurons is left out with its
attention, so a neuron of zeros stands in; and the size of a head is read only if layer 0 has heads,
so one of zeros stands in there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedprune.export.decoder import (
    Decoder,
    DecoderLayer,
    Unheld,
    rope_factors,
    with_attention,
    with_neuron,
)
from fedprune.export.gguf_vocabulary import GgufVocabulary

GGUF_NAME = "model.gguf"

GGUF_KINDS = ("llama", "mistral", "qwen2")
"""What ``model_type`` may be."""

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""llama.cpp's numbers of files whose matrices are of a type (``LLAMA_FTYPE_...``)."""

LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names in a block of transformers, without ``.weight`` of linear layers, to those in GGUF."""

AROUND_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}

ROPE_FACTORS = "rope_freqs.weight"


def gguf_name(name: str) -> str:
    """The name that GGUF has for a tensor of a block."""
    path, _, end = name.rpartition(".")
    return LAYER_NAMES.get(name) or f"{LAYER_NAMES[path]}.{end}"


@dataclass(frozen=True)
class GgufPlan:
    """What is written.

    The architecture is "llama", "qwen2" or "deci"; the decoder has heads and neurons of zeros in
    the place of what is gone, so many as `stood_in` says.
    """

    architecture: str
    decoder: Decoder
    stood_in: int = 0


def gguf_plan(decoder: Decoder) -> GgufPlan:
    """How llama.cpp holds a decoder.

    Raises:
        Unheld: it cannot.
    """
    qwen = decoder.settings.model_type == "qwen2"
    plan = GgufPlan("qwen2" if qwen else "llama", decoder) if decoder.even else _uneven(decoder)
    if rope_factors(decoder) is not None and plan.architecture == "qwen2":
        raise Unheld("model.rotary_emb: llama.cpp's graph of qwen2 has no factors of positions")
    return plan


def _uneven(decoder: Decoder) -> GgufPlan:
    found: list[DecoderLayer] = []
    for i, layer in enumerate(decoder.layers):
        biased = "self_attn.o_proj.bias" in layer.tensors
        whole = with_attention(layer, decoder) if i == 0 or biased else layer
        found.append(with_neuron(whole, decoder))
    sizes = zip(found, decoder.layers, strict=True)
    added = sum((a.heads - b.heads) + (a.neurons - b.neurons) for a, b in sizes)
    return GgufPlan("deci", replace(decoder, layers=tuple(found)), added)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows (or a bias) of queries or keys in the order of `fedprune.export.graph.turned_pairs`.

    transformers has the two halves of a head after each other, llama.cpp's NORM in turns.
    """
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def halved(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `interleaved`."""
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def rows_in_order(
    name: str, weight: Tensor, layer: DecoderLayer, order: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """A tensor of a block, its rows ordered if it makes queries or keys."""
    heads = {"self_attn.q_proj": layer.heads, "self_attn.k_proj": layer.groups}
    count = heads.get(name.rpartition(".")[0])
    return weight if count is None else order(weight, count)


def _tensors(plan: GgufPlan) -> Iterator[tuple[str, Tensor]]:
    """What is in the file, in its order."""
    for name, tensor in plan.decoder.around.items():
        yield AROUND_NAMES[name], tensor
    factors = rope_factors(plan.decoder)
    if factors is not None:
        yield ROPE_FACTORS, factors
    for i, layer in enumerate(plan.decoder.layers):
        for name, tensor in layer.tensors.items():
            pairs = plan.architecture != "qwen2"
            ordered = rows_in_order(name, tensor, layer, interleaved) if pairs else tensor
            yield f"blk.{i}.{gguf_name(name)}", ordered


def write_gguf(
    path: Path, plan: GgufPlan, kind: str, vocabulary: GgufVocabulary, name: str
) -> dict[str, int]:
    """Write the file; a tensor at a time is in memory in its new type.

    Args:
        path: of the file.
        plan: what.
        kind: of its matrices, a name in `fedprune.export.offered.GGUF_SUMMARIES`; norms, biases
            and factors of positions are float32. A matrix whose rows are no whole blocks of 32 is
            float16 under q8_0.
        vocabulary: of its tokenizer.
        name: of the model, for people.

    Returns:
        How many tensors of each type there are.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, plan.architecture)
    _write_sizes(writer, plan, kind, name)
    vocabulary.write(writer)
    kinds: dict[str, int] = {}
    for tensor_name, tensor in _tensors(plan):
        type_, size = _type_of(tensor, kind)
        kinds[type_.name] = kinds.get(type_.name, 0) + 1
        # The shape is read from bytes where an array is of bytes, so it is told as numbers.
        writer.add_tensor_info(
            tensor_name, tuple(tensor.shape), np.dtype(np.float32), size, raw_dtype=type_
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in _tensors(plan):
        writer.write_tensor_data(_packed(tensor, kind))
    writer.close()
    return kinds


def _type_of(tensor: Tensor, kind: str) -> tuple[Any, int]:
    """The type that a tensor is written in, and its bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.dim() < 2:
        kind = "f32"
    if kind == "q8_0" and tensor.shape[-1] % 32:
        kind = "f16"
    type_ = GGMLQuantizationType[kind.upper()]
    block, size = GGML_QUANT_SIZES[type_]
    return type_, tensor.numel() // block * size


def _packed(tensor: Tensor, kind: str) -> Any:
    from gguf import quants

    values = tensor.detach().float().contiguous().numpy()
    return quants.quantize(values, _type_of(tensor, kind)[0])


def _write_sizes(writer: Any, plan: GgufPlan, kind: str, name: str) -> None:
    decoder, settings = plan.decoder, plan.decoder.settings
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    if kind == "q8_0":
        writer.add_quantization_version(2)  # GGML_QNT_VERSION
    writer.add_vocab_size(settings.vocab_size)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(len(decoder.layers))
    heads, groups, neurons = zip(*(layer.sizes for layer in decoder.layers), strict=True)
    even = plan.architecture != "deci"  # there each layer has numbers of its own
    writer.add_head_count(heads[0] if even else list(heads))
    writer.add_head_count_kv(groups[0] if even else list(groups))
    writer.add_feed_forward_length(neurons[0] if even else list(neurons))
    writer.add_key_length(decoder.head)
    writer.add_value_length(decoder.head)
    writer.add_rope_dimension_count(decoder.head)
    writer.add_rope_freq_base(float(settings.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
