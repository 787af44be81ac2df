"""What a file of data unpacks to is bounded by its own size, before there is memory for it.

A few bytes can say that they are gigabytes: compressed zeros, a header's shape, a value that is
repeated, an object with a key of its own in every row.
"""

from __future__ import annotations

import gzip
import math
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

_FREE = 2**28
"""Bytes that any file may unpack to."""

_TIMES = 100
"""Further ones for each byte of the file; text and pictures pack at most so well."""


def most_of(path: Path) -> int:
    """How many bytes a file may unpack to."""
    return _FREE + _TIMES * path.stat().st_size


def check_claim(path: Path, claimed: int) -> None:
    """Refuse a file that says it is larger than it can be.

    Raises:
        ValueError: the file is named.
    """
    if claimed > most_of(path):
        raise ValueError(
            f"{path.name}: {path.stat().st_size} bytes that claim to be {claimed}; "
            f"allowed: {_FREE} and {_TIMES} for each byte"
        )


def gunzipped(path: Path) -> bytes:
    """What a gzipped file holds.

    Raises:
        ValueError: more than it can.
        EOFError, gzip.BadGzipFile, zlib.error: it is damaged.
    """
    with gzip.open(path) as file:
        found = file.read(most_of(path) + 1)
    check_claim(path, len(found))
    return found


def arrays_in(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays by name in an ``.npz`` file, nothing pickled.

    Raises:
        ValueError: it is none, or its arrays are larger than it can hold; the file is named.
    """
    try:
        with zipfile.ZipFile(path) as file:
            parts = file.infolist()
            check_claim(path, sum(part.file_size for part in parts))
            for part in parts:
                _check_header(file, part)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        text = str(error)
        raise ValueError(text if path.name in text else f"{path.name}: {text}") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path.name}: {error}") from None


def _check_header(file: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """Refuse an array whose shape is of more than the bytes that it has."""
    with file.open(part) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, kind = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, _, kind = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"{part.filename} is of version {version}; allowed: 1.0, 2.0")
    if math.prod(shape) * max(1, kind.itemsize) > part.file_size:
        raise ValueError(f"{part.filename} of shape {shape} has {part.file_size} bytes")
