"""A folder for vLLM read again: its tensors for a model, and what vLLM computes of it.

The second is the graph of ``vllm/model_executor/models/nemotron_nas.py`` written out in float32:
a layer's output and the stream that it is added to are two, and are added before the next norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from fedprune.export.decilm import deci_layers, emptied
from fedprune.export.decoder import Decoder, decoder_of, rope_factors
from fedprune.export.gguf_file import GGUF_KINDS
from fedprune.export.graph import angles_of, attended, fed_forward, layers_at, normed, turned_halves
from fedprune.runtime.json_text import read_object
from fedprune.structure.edits import Edits
from fedprune.tensors.named import Tensors


def deci_content(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """The config of a folder, and its tensors in float32."""
    config = read_object((folder / "config.json").read_bytes())
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    return config, tensors


def deci_into_model(tensors: Mapping[str, Tensor], model: nn.Module, edits: Edits) -> None:
    """Fill a model with a folder's tensors, in place, without what they were filled up with.

    Raises:
        ValueError: a tensor is not there, or of another shape.
    """
    decoder = decoder_of(model, edits, GGUF_KINDS)
    for name, place in decoder.around.items():
        _fill(place, tensors.get(name), name)
    for i, (layer, deci) in enumerate(zip(decoder.layers, deci_layers(decoder), strict=True)):
        start = f"model.layers.{i}."
        there = {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}
        real = emptied(there, deci, decoder.head)
        for name, place in layer.tensors.items():
            _fill(place, real.get(name), f"{layer.path}.{name}")


def _fill(place: Tensor, value: Tensor | None, name: str) -> None:
    if value is None or value.shape != place.shape:
        raise ValueError(f"{name}: not the tensor that was written")
    place.copy_(value)


def deci_logits(
    config: Mapping[str, Any], tensors: Tensors, decoder: Decoder, ids: Tensor
) -> Tensor:
    """What vLLM's graph says to one sequence of ids (T,): (T, vocabulary).

    By config and tensors of a folder; positions are turned by the decoder's factors.
    """
    heads, head = config["num_attention_heads"], config["head_dim"]
    base, epsilon = config["rope_parameters"]["rope_theta"], config["rms_norm_eps"]
    angles = angles_of(len(ids), head, base, rope_factors(decoder))
    output, stream = tensors["model.embed_tokens.weight"][ids], torch.zeros(())
    for i, block in enumerate(config["block_configs"]):
        path = f"model.layers.{i}"
        if not block["attention"]["no_op"]:
            stream = stream + output
            counts = (heads, heads // block["attention"]["n_heads_in_group"], head)
            before = normed(stream, tensors[f"{path}.input_layernorm.weight"], epsilon)
            linear = layers_at(tensors, f"{path}.self_attn.%s_proj")
            output = attended(before, linear, counts, lambda x: turned_halves(x, angles))
        if not block["ffn"]["no_op"]:
            stream = stream + output
            before = normed(stream, tensors[f"{path}.post_attention_layernorm.weight"], epsilon)
            output = fed_forward(before, layers_at(tensors, f"{path}.mlp.%s_proj"))
    states = normed(stream + output, tensors["model.norm.weight"], epsilon)
    return states @ tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).T
