"""What is called while a client trains: the model, or a compiled view of the same parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from fedprune.learning.options import Tuning


def prepared(model: nn.Module, config: Tuning) -> nn.Module:
    """What is called while tuning: the model, or a compiled view of the same parameters.

    Raises:
        ValueError: the model cannot recompute its activations.
    """
    if config.checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise ValueError(
                f"checkpointing=True: {type(model).__name__} keeps its activations; "
                "allowed: false, or a model of transformers"
            )
        _recompute(cast(Any, model))
    return cast(nn.Module, torch.compile(model)) if config.compile else model


def _recompute(model: Any) -> None:
    how = {"use_reentrant": False}
    # The name that transformers 5.23 warns about in favour of the first one.
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(how)
    else:
        model.gradient_checkpointing_enable(how)
