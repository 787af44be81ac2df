"""What kind of layer a module is: told by its type and by whose forward it runs.

A class's name says nothing: a user's ``class Conv1D(nn.Conv1d)`` is a convolution.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from typing import TypeVar

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS)

TABLES = (nn.Embedding, nn.EmbeddingBag)
"""What looks rows up."""

_OWN = {"forward", "_conv_forward", "__call__", "weight"}
"""A subclass that defines one of these computes something else; parametrisations define `weight`.
"""

_KNOWN = ("transformers.", "fedprune.structure.experts")

_Kind = TypeVar("_Kind", bound=type[nn.Module])


def is_layer(module: nn.Module) -> bool:
    """Whether it is a linear layer, a convolution or GPT-2's Conv1D, or a subclass of one."""
    return isinstance(module, LAYERS) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is GPT-2's Conv1D of `transformers`, whose weight is (in, out)."""
    return isinstance(module, _transposed_kinds())


def _transposed_kinds() -> tuple[type[nn.Module], ...]:
    # Who has one has imported its module; importing it here would cost every CNN run seconds.
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return () if kind is None else (kind,)


def is_plain_layer(module: nn.Module, convolutions: bool = True) -> bool:
    """Whether it is such a layer and computes as one, so that another may take its place."""
    kinds = LAYERS if convolutions else (nn.Linear,)
    return plain_kind(module, (*kinds, *_transposed_kinds())) is not None


def plain_kind(module: nn.Module, kinds: Container[_Kind]) -> _Kind | None:
    """The kind among `kinds` that a module computes as: its type, or what it inherits all from.

    None for other modules, for subclasses with a forward of their own, and for parametrised ones.
    """
    for cls in type(module).__mro__:
        if cls in kinds:
            return cls  # type: ignore[return-value]
        if _OWN & vars(cls).keys():
            return None
    return None


def family_name(module: nn.Module) -> str:
    """The name of the class of `transformers` whose forward the module runs; "" if none's.

    A single expert of a mixture has no class there, and that of `fedprune.structure.experts` here.
    """
    cls = next((c for c in type(module).__mro__ if "forward" in vars(c)), nn.Module)
    return cls.__name__ if cls.__module__.startswith(_KNOWN) else ""
