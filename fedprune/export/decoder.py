"""A decoder of the LLaMA kind, cut or not, as its layers' sizes and tensors, for other runtimes.

A runtime that is told the sizes of each layer holds uneven cuts. Not every place takes a size of 0:
there a head or a neuron of zeros, which says the same, stands in for what is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

    Args:
        model: as it was cut.
        edits: how.
        kinds: what ``model_type`` may be.

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
            raise Unheld(f"{path} is two matrices of rank {_rank(module)}, a runtime holds one")
    if settings.hidden_act != "silu":
        raise Unheld(f"model.layers.0.mlp: hidden_act={settings.hidden_act!r}, a runtime has silu")
    window = getattr(settings, "sliding_window", None)
    slides = getattr(settings, "use_sliding_window", True)
    if window is not None and slides and window < settings.max_position_embeddings:
        raise Unheld(
            f"model.layers.0.self_attn: sliding_window={window}, the runtimes' graph of a "
            f"{settings.model_type} attends to all of {settings.max_position_embeddings}"
        )


def _rank(factored: Factored) -> int:
    first: Any = factored[0]
    return int(first.weight.shape[0])


def _layer(path: str, block: Any, head: int) -> DecoderLayer:
    tensors: Tensors = {name: p.detach() for name, p in _all(block)}
    rows = {name: t.shape[0] for name, t in tensors.items()}
    return DecoderLayer(
        path,
        rows.get("self_attn.q_proj.weight", 0) // head,
        rows.get("self_attn.k_proj.weight", 0) // head,
        rows.get("mlp.gate_proj.weight", 0),
        tensors,
    )


def _all(block: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return block.named_parameters(remove_duplicate=False)


def _known() -> set[str]:
    inner = {f"self_attn.{n}" for n in ATTENTION} | {f"mlp.{n}" for n in FEED_FORWARD}
    return {f"{n}.{end}" for n in inner for end in ("weight", "bias")} | set(NORMS.values())


def _check_complete(
    model: nn.Module, layers: Sequence[DecoderLayer], around: Mapping[str, Tensor]
) -> None:
    """Refuse a model with a tensor that is read nowhere."""
    for layer in layers:
        odd = sorted(layer.tensors.keys() - _known())
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
