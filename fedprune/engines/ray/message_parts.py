"""Messages in two parts: large buffers by themselves, and a head of all that is small.

Ray keeps large buffers in shared memory, one copy a node, whoever reads them there. What is read
back is memory of others: to look at, not to write to.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

LARGE = 2**16
"""Bytes from which on a buffer travels by itself."""


class _Packer(pickle.Pickler):
    """A pickler that puts large bytes aside."""

    def __init__(self, file: io.BytesIO, aside: list[bytes]) -> None:
        super().__init__(file, protocol=5)
        self.aside = aside

    def persistent_id(self, obj: Any) -> int | None:
        """The number of a buffer that was put aside; None of anything else."""
        if not isinstance(obj, bytes | memoryview) or len(obj) < LARGE:
            return None
        self.aside.append(obj if isinstance(obj, bytes) else bytes(obj))
        return len(self.aside) - 1


class _Unpacker(pickle.Unpickler):
    """An unpickler that finds them again."""

    def __init__(self, file: io.BytesIO, aside: Sequence[Any]) -> None:
        super().__init__(file)
        self.aside = aside

    def persistent_load(self, pid: int) -> Any:
        """The buffer of a number."""
        return self.aside[pid]


def parted(message: Any) -> tuple[bytes, list[bytes]]:
    """A message as its head and its large buffers, which are those of the message, not copies."""
    file, aside = io.BytesIO(), list[bytes]()
    _Packer(file, aside).dump(message)
    return file.getvalue(), aside


def joined(head: bytes, buffers: Sequence[Any]) -> Any:
    """The message of a head and its buffers, anything with one, over the memory that these are in.

    The head is what `parted` gave in a process of the same run: this is a pickle, and trusted.
    """
    return _Unpacker(io.BytesIO(head), [memoryview(b) for b in buffers]).load()
