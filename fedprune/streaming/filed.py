"""Named tensors in a temporary file: what is made a part after the other, and needed whole."""

from __future__ import annotations

import tempfile
from itertools import accumulate
from typing import IO

import numpy as np
from torch import Tensor

from fedprune.tensors.lazy import LazyTensors, shape_only
from fedprune.tensors.named import Tensors, as_bytes, over_bytes


def filed(tensors: Tensors) -> LazyTensors:
    """The same tensors in a file without a name, read whenever one is asked for.

    The tensors hold it open. It lies in the system's folder for such files (TMPDIR), and is gone
    when nobody has the tensors any more, or when the process ends.

    Args:
        tensors: on the CPU; each leaves the dictionary when it is written.

    Raises:
        OSError: there is no room for them.
    """
    like = {name: shape_only(t) for name, t in tensors.items()}
    sizes = [t.numel() * t.dtype.itemsize for t in like.values()]
    starts = dict(zip(like, accumulate(sizes, initial=0), strict=False))
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    for name in like:
        _write(file, as_bytes(tensors.pop(name)))

    def read(name: str) -> Tensor:
        shape, dtype = like[name].shape, like[name].dtype
        file.seek(starts[name])
        data = np.fromfile(file, np.uint8, shape.numel() * dtype.itemsize)
        return over_bytes(data.data, dtype).view(shape)

    return LazyTensors(like, read)


def _write(file: IO[bytes], rest: memoryview) -> None:
    try:
        while rest:  # at most 2 GiB go in a call
            rest = rest[file.write(rest) :]
    except OSError as error:
        why = error.strerror or str(error)
        raise OSError(error.errno, why, tempfile.gettempdir()) from None
