"""What is called while a client trains: the model, or a compiled view of the same parameters."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from fedprune.learning.options import Tuning


def prepared(model: nn.Module, config: Tuning) -> nn.Module:
    """What is called while tuning: the model, or a compiled view of the same parameters.

    Raises:
        ValueError: the model cannot recompute its activations.
    """
    if config.checkpointing:
        recomputing(model)
    return cast(nn.Module, torch.compile(model)) if config.compile else model


def recomputing(model: nn.Module) -> None:
    """Let the model compute its activations again on the way back, where it trains.

    Raises:
        ValueError: it cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(
            f"checkpointing=True: {type(model).__name__} keeps its activations; "
            "allowed: false, or a model of transformers"
        )
    # The second is the name that transformers 5.23 warns about in favour of the first one.
    old, its = "gradient_checkpointing_enable", cast(Any, model)
    enable = getattr(its, "activation_checkpointing_enable", None) or getattr(its, old)
    enable({"use_reentrant": False})
