"""Whole sub-layers taken out of a transformer: what stays is what the masked one returns.

A masked attention or feed-forward layer returns the bias of the layer that reads its units, or
nothing. The norm before it is dead then and goes too; the norm after it (BERT, RoBERTa) stays.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fedprune.structure.families.family import Inline, SubLayer
from fedprune.structure.low_rank_layers import outputs


class Bias(nn.Module):
    """What stays of a layer whose inputs are gone: its bias, under its name; without one zeros."""

    def __init__(self, bias: nn.Parameter | None, width: int) -> None:
        super().__init__()
        self.register_parameter("bias", bias)
        self.width = width

    def forward(self, states: Tensor) -> Tensor:
        """The bias for every position of (..., any) states."""
        bias: Any = self.bias
        # A view of a parameter claims to need a gradient even where there are none; of a copy not.
        row = states.new_zeros(self.width) if bias is None else bias.clone()
        spread: Tensor = row.expand(*states.shape[:-1], self.width)
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
        self.add_module(column, None if bias is None else Bias(bias, len(bias)))
        self.dropout = dropout

    def forward(self, hidden_states: Tensor, *_args: object, **given: Any) -> Any:
        """The bias, in the form in which the layer answered."""
        reader = self._modules[self.column]
        out = hidden_states.new_zeros(()) if reader is None else self.dropout(reader(hidden_states))
        return (out, *(given.get(name) for name in self.rest)) if self.rest else out


class Through(nn.Module):
    """In place of what makes heads: the states as they are, for `Bias` to read their shape."""

    def forward(
        self, hidden_states: Tensor, *_args: object, **_given: object
    ) -> tuple[Tensor, None]:
        """The states, and no attention."""
        return hidden_states, None


def remove(model: nn.Module, module: nn.Module, sublayer: SubLayer) -> None:
    """Take a sub-layer out of the model, wherever it is used."""
    reader = module.get_submodule(sublayer.column)
    bias: Any = reader.bias
    frame = sublayer.frame
    if isinstance(frame, Inline):
        _silence(module, sublayer, frame)
        return
    inner = module.get_submodule(frame.dropout) if frame.dropout else nn.Identity()
    gone = Gone(sublayer.column, bias, inner, frame.rest)
    for block, name in replace(model, module, sublayer.stand_in(module) or gone):
        dead = [frame.norms] if frame.before(block) else []
        dead += [frame.after] if bias is None else []
        for norms in dead:
            if name in norms:
                setattr(block, norms[name], nn.Identity())


def _silence(module: nn.Module, sublayer: SubLayer, frame: Inline) -> None:
    reader = module.get_submodule(sublayer.column)
    bias: Any = reader.bias
    replace(module, reader, Bias(bias, outputs(reader)))
    maker = module.get_submodule(frame.maker)
    replace(module, maker, Through() if frame.answers else nn.Identity())
    for norm in frame.norms if frame.before(module) else ():
        setattr(module, norm, nn.Identity())


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> list[tuple[nn.Module, str]]:
    """Put a module in the place of another, under every name it has.

    The modules that it was in come out, with its name there.
    """
    places = [(m, n) for m in list(model.modules()) for n, c in m._modules.items() if c is old]
    for parent, name in places:
        setattr(parent, name, new)
    return places
