"""Modules of some layers and of what is done with them, for tests that need an odd one."""

from collections.abc import Callable
from typing import Any

from torch import nn


def module(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """Of a class of its own, for tracing looks at the class's forward."""
    made: nn.Module = type("Net", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        setattr(made, name, part)
    return made
