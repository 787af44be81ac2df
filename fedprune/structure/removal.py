"""Whole sub-layers taken out of a transformer: what stays is what the masked one returns.

A masked attention or feed-forward layer returns the bias of the layer that reads its units, or
nothing. The norm before it is dead then and goes too; the norm after it (BERT, RoBERTa) stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fedprune.structure.families.family import SubLayer


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


def remove(model: nn.Module, module: nn.Module, sublayer: SubLayer) -> None:
    """Take a sub-layer out of the model, wherever it is used.

    Args:
        model: changed in place.
        module: the attention or feed-forward layer.
        sublayer: what is known of its kind.
    """
    reader = module.get_submodule(sublayer.column)
    bias: Any = reader.bias
    frame = sublayer.frame
    if frame is not None:
        inner = module.get_submodule(frame.dropout) if frame.dropout else nn.Identity()
        gone = Gone(sublayer.column, bias, inner, frame.rest)
        replace(model, module, sublayer.stand_in(module) or gone, frame.norms)
        return
    replace(module, reader, Bias(bias))
    head = sublayer.kind == "head"
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
