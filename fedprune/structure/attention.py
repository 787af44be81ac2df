"""How transformers compute attention: fused in one kernel, or written out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def eager(*models: nn.Module) -> Iterator[None]:
    """Within the block attention is written out, as it was afterwards.

    Only then are its weights there to be seen, its products counted and its graph exported.
    """
    configs = [getattr(module, "config", None) for model in models for module in model.modules()]
    known: dict[int, Any] = {id(c): c for c in configs if hasattr(c, "_attn_implementation")}
    before = {key: c._attn_implementation for key, c in known.items()}
    try:
        for settings in known.values():
            settings._attn_implementation = "eager"
        yield
    finally:
        for key, settings in known.items():
            settings._attn_implementation = before[key]
