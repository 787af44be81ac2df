"""A sum of large tensors that lies in a file while answers come.

In float64 it is twice the weights, and only looked at where a part of it is added to; so a server
holds its model and one answer at a time, not two models more. Same bits as in memory.

What noise is to hide before anybody sees it lies there under a key that is in memory only: a disk
keeps what a file without a name held.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from fedprune.tensors.named import as_bytes

FROM = 2**24
"""Bytes of a sum that is worth a file."""

_AT_ONCE = 2**18
"""Values that are added at a time."""


@dataclass
class SumInFile:
    """Σ factor · values in float64, in a file without a name that goes with this.

    Attributes:
        folder: where that is; None: where the system keeps what is temporary.
        hidden: under what the file is, if it is not readable.
        size: values that are added each time; 0 before the first time.
    """

    folder: Path | None = None
    hidden: Hidden | None = None
    size: int = 0
    _file: IO[bytes] | None = field(default=None, repr=False)

    def add(self, values: Tensor, factor: float) -> None:
        """Add values times a factor; they are left as they are.

        Raises:
            OSError: the disk is full; then nothing more can be made of the sum.
        """
        first = self._file is None
        if self._file is None:
            self._file, self.size = tempfile.TemporaryFile(dir=self.folder), values.numel()  # noqa: SIM115
        assert values.numel() == self.size  # of one form
        for start in range(0, self.size, _AT_ONCE):
            more = values[start : start + _AT_ONCE].to(torch.float64, copy=True)
            if factor != 1.0:
                more.mul_(factor)
            if not first:  # else as it is: 0.0 and -0.0 would be 0.0
                more = self._read_into(torch.empty_like(more), start).add_(more)
            if self.hidden is not None:
                self.hidden.hide(start, as_bytes(more))
            self._file.seek(8 * start)
            self._file.write(as_bytes(more))

    def total(self) -> Tensor | None:
        """The sum, flat float64, in memory of its own; None: of nothing."""
        if self._file is None:
            return None
        out = torch.empty(self.size, dtype=torch.float64)
        for start in range(0, self.size, _AT_ONCE):
            self._read_into(out[start : start + _AT_ONCE], start)
        return out

    def _read_into(self, out: Tensor, start: int) -> Tensor:
        assert self._file is not None  # something was added
        self._file.seek(8 * start)
        if self._file.readinto(as_bytes(out)) != 8 * len(out):  # type: ignore[attr-defined]
            raise OSError(f"a sum of {self.size} values in {self.folder}: its file is cut short")
        if self.hidden is not None:
            self.hidden.show(start, as_bytes(out))
        return out


@dataclass
class Hidden:
    """A ChaCha20 keystream (RFC 8439) under a key of this process, another for every writing.

    It keeps what is read from who finds the file, not from who changes it. Nobody else has the key.
    """

    key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    _written: dict[int, int] = field(default_factory=dict, repr=False)
    _count: int = 0

    def hide(self, place: int, data: memoryview) -> None:
        """Make what is about to be written at a place unreadable, where it lies."""
        self._count += 1
        self._written[place] = self._count
        self.show(place, data)

    def show(self, place: int, data: memoryview) -> None:
        """Make what was read at a place readable again."""
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

        # The first four bytes count blocks of the stream, the others are of one writing alone.
        nonce = bytes(4) + self._written[place].to_bytes(12, "little")
        stream = Cipher(ChaCha20(self.key, nonce), mode=None).encryptor()
        data[:] = stream.update(data)


def outside_for(values: int, folder: Path | None, *, hidden: bool = False) -> SumInFile | None:
    """Where so many values are added up; None: in memory, as they are few, or cannot be hidden."""
    if 8 * values < FROM or (hidden and find_spec("cryptography") is None):
        return None
    return SumInFile(folder, Hidden() if hidden else None)
