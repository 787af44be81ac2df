"""Whole sub-layers taken out of a transformer: what stays is what the masked one returns.

A masked attention or feed-forward layer returns the bias of the layer that reads its units, or
nothing. The norm before it is dead then and goes too; the norm after it (BERT, RoBERTa) stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedprune.structure.groups import Family
from fedprune.structure.layer_kinds import family_name


class Bias(nn.Module):
    """What stays of a layer whose inputs are gone: its bias, under its name."""

    def __init__(self, bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, states: Tensor) -> Tensor:
        """The bias for every position of (..., any) states."""
        bias: Any = self.bias
        # A view of a parameter claims to need a gradient even where there are none; of a copy not.
        spread: Tensor = bias.clone().expand(*states.shape[:-1], len(bias))
        return spread


class Gone(nn.Module):
    """In place of an attention or feed-forward layer without units.

    Args:
        column: path of the layer that read the units; its bias stays under that name.
        bias: that layer's bias; without one the answer is a 0 that broadcasts.
        dropout: what the bias went through.
        rest: the other values of the answer: names of arguments handed on, "" for None.
    """

    def __init__(
        self, column: str, bias: nn.Parameter | None, dropout: nn.Module, rest: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.column, self.rest = column, rest
        self.add_module(column, None if bias is None else Bias(bias))
        self.dropout = dropout

    def forward(self, hidden_states: Tensor, *_args: object, **given: Any) -> Any:
        """The bias, in the form in which the layer answered."""
        reader = self._modules[self.column]
        out = hidden_states.new_zeros(()) if reader is None else self.dropout(reader(hidden_states))
        return (out, *(given.get(name) for name in self.rest)) if self.rest else out


class Through(nn.Module):
    """In place of BERT's heads: the states as they are, for `Bias` to read their shape."""

    def forward(
        self, hidden_states: Tensor, *_args: object, **_given: object
    ) -> tuple[Tensor, None]:
        """The states, and no attention."""
        return hidden_states, None


@dataclass(frozen=True)
class Frame:
    """How a sub-layer sits in a block with norms before its sub-layers.

    Attributes:
        norms: the norm before it, by the name that the block gives the sub-layer.
        dropout: its own dropout after the reading layer, "" if the block has it.
        rest: as of `Gone`.
    """

    norms: Mapping[str, str]
    dropout: str = ""
    rest: tuple[str, ...] = ()


_T5_NORMS = dict.fromkeys(("SelfAttention", "EncDecAttention", "DenseReluDense"), "layer_norm")

FRAMES: dict[str, Frame] = {
    "LlamaAttention": Frame({"self_attn": "input_layernorm"}, rest=("",)),
    "LlamaMLP": Frame({"mlp": "post_attention_layernorm"}),
    "GPT2Attention": Frame(
        {"attn": "ln_1", "crossattention": "ln_cross_attn"}, "resid_dropout", ("",)
    ),
    "GPT2MLP": Frame({"mlp": "ln_2"}, "dropout"),
    "T5Attention": Frame(_T5_NORMS, rest=("position_bias", "")),
    "T5DenseActDense": Frame(_T5_NORMS),
    "T5DenseGatedActDense": Frame(_T5_NORMS),
}


def remove(model: nn.Module, module: nn.Module, family: Family) -> None:
    """Take a sub-layer out of the model, wherever it is used.

    Args:
        model: changed in place.
        module: the attention or feed-forward layer, of a kind in
            `fedprune.structure.groups.FAMILIES`.
        family: its line there.
    """
    reader = module.get_submodule(family.column)
    bias: Any = reader.bias
    frame = FRAMES.get(family_name(module))
    if frame is not None:
        inner = module.get_submodule(frame.dropout) if frame.dropout else nn.Identity()
        replace(model, module, Gone(family.column, bias, inner, frame.rest), frame.norms)
        return
    replace(module, reader, Bias(bias))
    head = family.kind == "head"
    silent = module.get_submodule("self" if head else "intermediate")
    replace(module, silent, Through() if head else nn.Identity())


def replace(
    model: nn.Module, old: nn.Module, new: nn.Module, norms: Mapping[str, str] | None = None
) -> None:
    """Put a module in the place of another, under every name it has; the norms before it go."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
                if norms and name in norms:
                    setattr(parent, norms[name], nn.Identity())


def pass_through(model: nn.Module) -> None:
    """Let blocks of which nothing is left hand on what they are given.

    They stay modules of their kind, so that the model's hidden states are still counted by block.
    """
    for block in model.modules():
        passes = PASSES.get(family_name(block))
        if passes is not None and next(block.parameters(), None) is None:
            block.forward = passes


def _states(hidden_states: Tensor, *_args: object, **_given: object) -> Tensor:
    return hidden_states


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


PASSES: dict[str, Callable[..., Any]] = {
    "LlamaDecoderLayer": _states,
    "T5Block": _states_and_biases,
}
