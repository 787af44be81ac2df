"""Panics of libraries in Rust, which are no `Exception`, as errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Within the block a panic in Rust (tokenizers, safetensors, pcodec) is a ValueError.

    Their own is no `Exception`: who reads a file that holds anything would not see it.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(" ".join(str(error).split())[:300]) from None
