"""A decoder of the LLaMA kind, cut or not, as its layers' sizes and tensors, for other runtimes.

A runtime that is told the sizes of each layer holds uneven cuts. Not every place takes a size of 0:
there a head or a neuron of zeros, which says the same, stands in for what is gone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.export.config_keys import UNSAID
from fedprune.structure.edits import Edits
from fedprune.structure.low_rank_layers import Factored
from fedprune.tensors.named import Tensors

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")

NORMS = {"self_attn": "input_layernorm.weight", "mlp": "post_attention_layernorm.weight"}
"""The norm before each sub-layer."""

_KNOWN = {
    *NORMS.values(),
    *(f"self_attn.{n}.{end}" for n in ATTENTION for end in ("weight", "bias")),
    *(f"mlp.{n}.{end}" for n in FEED_FORWARD for end in ("weight", "bias")),
}


class Unheld(ValueError):
    """A runtime cannot hold the model; the message names the layer and says why."""


@dataclass(frozen=True)
class DecoderLayer:
    """A block.

    Attributes:
        path: of the module in the model.
        heads: query heads; 0: no attention.
        groups: key and value heads, a divisor of `heads`.
        neurons: of the feed-forward layer; 0: none.
        tensors: by their names in the block, as transformers has them.
    """

    path: str
    heads: int
    groups: int
    neurons: int
    tensors: Tensors

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Heads, groups, neurons."""
        return self.heads, self.groups, self.neurons


@dataclass(frozen=True)
class Decoder:
    """A decoder of the LLaMA kind.

    Attributes:
        settings: the model's config; what it counts of layers, heads and neurons is not read.
        head: size of a head.
        layers: those of which anything is left, in order.
        around: what is beside the blocks, by its name in the model; the head of output only where
            it is not the embeddings.
    """

    settings: Any
    head: int
    layers: tuple[DecoderLayer, ...]
    around: Tensors

    @property
    def even(self) -> bool:
        """Whether all layers have the same sizes, none of them 0."""
        sizes = {layer.sizes for layer in self.layers}
        return len(sizes) == 1 and all(next(iter(sizes)))


def decoder_of(model: nn.Module, edits: Edits, kinds: Sequence[str]) -> Decoder:
    """The decoder that a model is; its tensors are the model's own.

    `kinds` are what ``model_type`` may be.

    Raises:
        Unheld: it is none, or has something that such a decoder has no place for.
    """
    asked: Any = model
    settings: Any = getattr(asked, "config", None)
    kind = getattr(settings, "model_type", "no model of transformers")
    if kind not in kinds or not type(model).__name__.endswith("ForCausalLM"):
        raise Unheld(f"{type(model).__name__} ({kind}) is no language model of {', '.join(kinds)}")
    for edit in edits:
        if edit.kind in ("vocab", "channel"):
            raise Unheld(f"{edit.path}: edits of kind {edit.kind}: {UNSAID[edit.kind]}")
    _check_settings(settings, model)
    head = int(getattr(settings, "head_dim", None) or 0)
    head = head or settings.hidden_size // settings.num_attention_heads
    layers = [_layer(f"model.layers.{i}", m, head) for i, m in enumerate(asked.model.layers)]
    around = {n: asked.get_parameter(n) for n in ("model.embed_tokens.weight", "model.norm.weight")}
    if asked.lm_head.weight is not asked.model.embed_tokens.weight:
        around["lm_head.weight"] = asked.lm_head.weight
    _check_complete(model, layers, around)
    left = tuple(layer for layer in layers if layer.tensors)
    if not left:
        raise Unheld("model.layers: nothing of any block is left")
    return Decoder(settings, head, left, {n: t.detach() for n, t in around.items()})


def _check_settings(settings: Any, model: nn.Module) -> None:
    """Refuse what a config asks for that the runtimes' graph has not."""
    for path, module in model.named_modules():
        if isinstance(module, Factored):
            rank = len(module[0].weight)  # type: ignore[arg-type]
            raise Unheld(f"{path} is two matrices of rank {rank}, a runtime holds one")
    if settings.hidden_act != "silu":
        raise Unheld(f"model.layers.0.mlp: hidden_act={settings.hidden_act!r}, a runtime has silu")
    window = getattr(settings, "sliding_window", None)
    slides = getattr(settings, "use_sliding_window", True)
    if window is not None and slides and window < settings.max_position_embeddings:
        raise Unheld(
            f"model.layers.0.self_attn: sliding_window={window}, the runtimes' graph of a "
            f"{settings.model_type} attends to all of {settings.max_position_embeddings}"
        )


def _layer(path: str, block: Any, head: int) -> DecoderLayer:
    named = block.named_parameters(remove_duplicate=False)
    tensors: Tensors = {name: p.detach() for name, p in named}
    rows = {name: t.shape[0] for name, t in tensors.items()}
    return DecoderLayer(
        path,
        rows.get("self_attn.q_proj.weight", 0) // head,
        rows.get("self_attn.k_proj.weight", 0) // head,
        rows.get("mlp.gate_proj.weight", 0),
        tensors,
    )


def _check_complete(
    model: nn.Module, layers: Sequence[DecoderLayer], around: Mapping[str, Tensor]
) -> None:
    """Refuse a model with a tensor that is read nowhere."""
    for layer in layers:
        odd = sorted(layer.tensors.keys() - _KNOWN)
        if odd:
            raise Unheld(f"{layer.path}.{odd[0]}: a runtime has no place for it")
    read = {f"{layer.path}.{name}" for layer in layers for name in layer.tensors} | set(around)
    state = dict(model.named_parameters())
    stays = sorted(state.keys() - read)
    if stays:
        raise Unheld(f"{stays[0]}: a runtime has no place for it")


def with_attention(layer: DecoderLayer, decoder: Decoder) -> DecoderLayer:
    """The layer with one head of zeros where it has no attention: it adds the bias, or nothing."""
    if layer.heads:
        return layer
    width, zeros = decoder.settings.hidden_size, torch.zeros
    made = {f"self_attn.{n}.weight": zeros(decoder.head, width) for n in ATTENTION[:3]}
    made["self_attn.o_proj.weight"] = zeros(width, decoder.head)
    made[NORMS["self_attn"]] = torch.ones(width)
    return replace(layer, heads=1, groups=1, tensors={**made, **layer.tensors})


def with_neuron(layer: DecoderLayer, decoder: Decoder) -> DecoderLayer:
    """The layer with one neuron of zeros where it has no feed-forward layer."""
    if layer.neurons:
        return layer
    width = decoder.settings.hidden_size
    made = {f"mlp.{n}.weight": torch.zeros(1, width) for n in FEED_FORWARD[:2]}
    made["mlp.down_proj.weight"] = torch.zeros(width, 1)
    made[NORMS["mlp"]] = torch.ones(width)
    return replace(layer, neurons=1, tensors={**made, **layer.tensors})


def rope_factors(decoder: Decoder) -> Tensor | None:
    """What llama.cpp divides the frequencies of positions by, (head / 2,); None: by nothing.

    Raises:
        Unheld: positions are of a kind that it would compute otherwise.
    """
    rope = dict(decoder.settings.rope_parameters)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Unheld("model.rotary_emb: only a part of a head is turned, llama.cpp turns all of it")
    if rope["rope_type"] == "default":
        return None
    if rope["rope_type"] == "linear":
        return torch.full((decoder.head // 2,), float(rope["factor"]))
    if rope["rope_type"] == "llama3":
        return _llama3_factors(rope, decoder.head)
    raise Unheld(
        f"model.rotary_emb: rope_type={rope['rope_type']!r}, held are default, linear and llama3"
    )


def _llama3_factors(rope: dict[str, Any], head: int) -> Tensor:
    """Of Llama 3.1: long waves are stretched, short ones stay, between them it is in proportion."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    waves = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, head, 2).double() / head)
    turns = rope["original_max_position_embeddings"] / waves
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    factors: Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.float()
