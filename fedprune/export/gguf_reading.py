"""A GGUF file of ours read again: its tensors for a model, and what llama.cpp computes of it.

The second is llama.cpp's graph written out (``src/models/llama.cpp``, ``deci.cpp``, ``qwen2.cpp``),
on the file's own numbers, in float32; llama.cpp itself multiplies by quantised weights with
quantised inputs, and is not run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.export.decoder import DecoderLayer, decoder_of
from fedprune.export.gguf_file import (
    AROUND_NAMES,
    GGUF_KINDS,
    ROPE_FACTORS,
    gguf_name,
    halved,
    rows_in_order,
)
from fedprune.export.graph import (
    angles_of,
    attended,
    fed_forward,
    layers_at,
    normed,
    turned_halves,
    turned_pairs,
)
from fedprune.structure.edits import Edits
from fedprune.tensors.named import Tensors


@dataclass(frozen=True)
class GgufContent:
    """What a file holds.

    Tensors are restored to float32, as they lie there; keys are without the architecture's name in
    front.
    """

    architecture: str
    keys: Mapping[str, Any]
    tensors: Tensors
    kinds: Mapping[str, str]

    def count(self, key: str, layer: int) -> int:
        """A number of a layer, from a key that says one of all or one for each."""
        said = self.keys[key]
        return int(said[layer] if isinstance(said, list) else said)


def read_gguf(path: Path) -> GgufContent:
    """Read a file whole.

    Raises:
        ValueError: `gguf` is not installed, or it is no GGUF file.
    """
    try:
        from gguf import GGUFReader, quants
    except ImportError:
        raise ValueError(f"{path}: gguf is not installed; allowed: pip install gguf") from None
    reader = GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    architecture = str(said["general.architecture"])
    tensors, kinds = {}, {}
    for t in reader.tensors:
        kinds[t.name] = t.tensor_type.name
        values = torch.from_numpy(quants.dequantize(t.data, t.tensor_type).copy())
        tensors[t.name] = values.view(*reversed([int(n) for n in t.shape]))
    keys = {name.removeprefix(f"{architecture}."): value for name, value in said.items()}
    return GgufContent(architecture, keys, tensors, kinds)


def into_model(content: GgufContent, model: nn.Module, edits: Edits) -> dict[str, str]:
    """Fill a model with a file's tensors, in place; zeros that stood in for what is gone stay out.

    Out comes the type in the file of each of the model's tensors, by name.

    Raises:
        ValueError: a tensor is not there, or of another shape.
    """
    decoder, kinds = decoder_of(model, edits, GGUF_KINDS), {}

    def fill(place: Tensor, name: str, source: str, layer: DecoderLayer | None) -> None:
        value = content.tensors.get(source)
        if value is None or value.shape != place.shape:
            raise ValueError(f"{source}: not the tensor that {name} was")
        if layer is not None and content.architecture != "qwen2":
            value = rows_in_order(name.removeprefix(f"{layer.path}."), value, layer, halved)
        place.copy_(value)
        kinds[name] = content.kinds[source]

    for name, place in decoder.around.items():
        fill(place, name, AROUND_NAMES[name], None)
    for i, layer in enumerate(decoder.layers):
        for name, place in layer.tensors.items():
            fill(place, f"{layer.path}.{name}", f"blk.{i}.{gguf_name(name)}", layer)
    return kinds


def gguf_logits(content: GgufContent, ids: Tensor) -> Tensor:
    """What llama.cpp's graph says to one sequence of ids (T,): (T, vocabulary)."""
    tensors, keys = content.tensors, content.keys
    epsilon, head = keys["attention.layer_norm_rms_epsilon"], keys["attention.key_length"]
    factors = tensors.get(ROPE_FACTORS)
    angles = angles_of(len(ids), head, keys["rope.freq_base"], factors)
    turn = turned_halves if content.architecture == "qwen2" else turned_pairs
    states = tensors["token_embd.weight"][ids]
    for i in range(keys["block_count"]):
        heads, groups = (content.count(f"attention.head_count{end}", i) for end in ("", "_kv"))
        if heads:
            before = normed(states, tensors[f"blk.{i}.attn_norm.weight"], epsilon)
            linear = layers_at(tensors, f"blk.{i}.attn_%s", o="output")
            states = states + attended(
                before, linear, (heads, groups, head), lambda x: turn(x, angles)
            )
        before = normed(states, tensors[f"blk.{i}.ffn_norm.weight"], epsilon)
        states = states + fed_forward(before, layers_at(tensors, f"blk.{i}.ffn_%s"))
    states = normed(states, tensors["output_norm.weight"], epsilon)
    return states @ tensors.get("output.weight", tensors["token_embd.weight"]).T
