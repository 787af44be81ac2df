"""A sum of large tensors that lies in a file while answers come.

In float64 it is twice the weights, and only looked at where a part of it is added to; so a server
holds its model and one answer at a time, not two models more. Same bits as in memory.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
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
        size: values that are added each time; 0 before the first time.
    """

    folder: Path | None = None
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
                more = self._read(start, len(more)).add_(more)
            self._file.seek(8 * start)
            self._file.write(as_bytes(more))

    def total(self) -> Tensor | None:
        """The sum, flat float64, in memory; None: of nothing."""
        return None if self._file is None else self._read(0, self.size)

    def _read(self, start: int, count: int) -> Tensor:
        assert self._file is not None  # something was added
        out = torch.empty(count, dtype=torch.float64)
        self._file.seek(8 * start)
        if self._file.readinto(as_bytes(out)) != 8 * count:  # type: ignore[attr-defined]
            raise OSError(f"a sum of {self.size} values in {self.folder}: its file is cut short")
        return out


def outside_for(values: int, folder: Path | None) -> SumInFile | None:
    """Where so many values are added up; None: in memory, they are few."""
    return SumInFile(folder) if 8 * values >= FROM else None
