"""A folder for vLLM, which counts as written when its own reader has read it again."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from fedprune.export.brought import LARGEST_FILE, dtype_of, rounded
from fedprune.export.deci_reading import deci_content, deci_into_model, deci_logits
from fedprune.export.decilm import (
    CONFIG_CODE,
    CONFIG_CODE_NAME,
    DeciLayer,
    deci_config,
    deci_layers,
    filled_up,
)
from fedprune.export.decoder import Decoder, Unheld, decoder_of, rope_factors
from fedprune.export.exported_model import (
    ExportedModel,
    about_export,
    give_all_back,
    probe_of,
    type_words,
)
from fedprune.export.folders import model_outputs
from fedprune.export.gguf_file import GGUF_KINDS
from fedprune.export.gguf_folder import outputs_apart
from fedprune.export.manifest import write_manifest
from fedprune.options.refusal import counted
from fedprune.runtime.files import write_atomically
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Tensors


def write_deci_folder(exported: ExportedModel, folder: Path) -> str:
    """Write config, its code, weights, tokenizer, card and manifest.

    What was checked comes out, in words.

    Raises:
        ValueError: vLLM cannot hold the model, or what was read again is not what was written.
    """
    model = rounded(copy.deepcopy(exported.model), dtype_of(exported.config))
    try:
        if path := next((edit.path for edit in exported.edits if edit.kind == "bias"), ""):
            # Which vLLM leaves unread without a word.
            raise Unheld(f"{path} has a bias, and vLLM gives one to all layers of a kind or none")
        decoder = decoder_of(model, exported.edits, GGUF_KINDS)
        rope_factors(decoder)
        layers = deci_layers(decoder)
    except Unheld as error:
        raise ValueError(f"to='vllm': {error}; allowed: --to safetensors, sparse, onnx") from None
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config = deci_config(decoder, layers, dtype)
    text = f"{json.dumps(config, indent=2, sort_keys=True)}\n"  # as transformers writes it
    write_atomically(folder / "config.json", text.encode())
    write_atomically(folder / CONFIG_CODE_NAME, CONFIG_CODE.encode())
    save_torch_state_dict(_tensors_of(decoder, layers), folder, max_shard_size=LARGEST_FILE)
    checked = _read_again(exported, folder, decoder)
    give_all_back(exported, folder)
    write_manifest(folder, about_export(exported, "vllm"))
    return f"{_sizes(layers)}\n{checked}{type_words(exported)}"


def _tensors_of(decoder: Decoder, layers: list[DeciLayer]) -> Tensors:
    """Everything under vLLM's names."""
    found: Tensors = dict(decoder.around)
    for i, deci in enumerate(layers):
        own = filled_up(deci.layer.tensors, deci, decoder.head)
        found |= {f"model.layers.{i}.{name}": t for name, t in own.items()}
    dtype = decoder.around["model.embed_tokens.weight"].dtype
    return {name: t.to(dtype) for name, t in found.items()}


def _sizes(layers: list[DeciLayer]) -> str:
    """What stands for what vLLM cannot have fewer of."""
    zeros = sum(d.in_group * d.groups - d.layer.heads for d in layers)
    answer = "self_attn.o_proj.weight"
    zeros += sum(d.layer.heads and not d.layer.tensors[answer].any() for d in layers)
    heads = layers[0].in_group * layers[0].groups
    filled = f", {counted(zeros, 'head')} of zeros among them" if zeros else ""
    return f"DeciLMForCausalLM: {counted(len(layers), 'layer')} of {heads} query heads{filled}"


def _read_again(exported: ExportedModel, folder: Path, decoder: Decoder) -> str:
    config, tensors = deci_content(folder)
    back = copy.deepcopy(exported.model).float()
    deci_into_model(tensors, back, exported.edits)
    rounded_here = rounded(copy.deepcopy(exported.model), dtype_of(exported.config)).float()
    for name, here in state_of(rounded_here).items():
        if not torch.equal(here, state_of(back)[name]):
            raise ValueError(f"to='vllm': read again, {name} is not what was written")
    forward = probe_of(exported)
    ids: Tensor = forward.kwargs["input_ids"]
    with torch.no_grad():
        graph = torch.stack([deci_logits(config, tensors, decoder, row) for row in ids])
    off, largest = outputs_apart(graph, model_outputs(back, forward), "vllm")
    return (
        f"read again: {counted(len(tensors), 'tensor')}; vLLM's graph, written out, is {off:.3g} "
        f"off, logits are up to {largest:.3g}"
    )
