"""Hooks of modules and tensors that are there for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def removed_after(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """The hooks are removed when the block ends, however it ends."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        yield
