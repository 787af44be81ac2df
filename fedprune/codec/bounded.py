"""Reading bytes of others: what they unpack to is bounded before anything is unpacked.

Everything here raises ValueError, whatever the bytes are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from pcodec import standalone

Buffer = bytes | memoryview

FREE = 2**24
"""Weights that a file may speak of whatever its size."""

EACH = 2**16
"""Further weights for each byte of it: a mask that keeps everything is a few bytes a tensor."""

LONGEST_TEXT = 2**26
"""Bytes of a text of JSON: heads name every tensor of a model, edits every unit of it."""


def most_weights(size: int) -> int:
    """How many weights a file of `size` bytes may speak of where no layout is known."""
    return FREE + EACH * size


def read_json(data: Buffer | str, most: int = LONGEST_TEXT) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is too long or too deep, no JSON, or it names something twice.
    """
    if len(data) > most:
        raise ValueError(f"a text of {len(data)} bytes; allowed: {most}")
    try:
        text = data if isinstance(data, str) else bytes(data).decode()
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("a text that is nested too deeply") from None


def read_object(data: Buffer | str, most: int = LONGEST_TEXT) -> dict[str, Any]:
    """The same, of a text that is an object.

    Raises:
        ValueError: as for `read_json`, or it is something else.
    """
    found = read_json(data, most)
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__}, expected an object")
    return found


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that occurs twice")
    return found


def unzipped(data: Buffer, most: int) -> bytes:
    """What zstd packed, of at most `most` bytes; memory is bounded by that, not by what is claimed.

    Raises:
        ValueError: it is damaged, or more.
    """
    try:
        window = zstandard.get_frame_parameters(bytes(data)).window_size
        if window > max(most, 1024):
            raise ValueError(f"claims {window} bytes; allowed: {most}")
        reader = zstandard.ZstdDecompressor().stream_reader(bytes(data))
        out = bytes(reader.read(most + 1))
    except (zstandard.ZstdError, MemoryError, OverflowError) as error:
        raise ValueError(f"zstd: {error}") from None
    if len(out) > most:
        raise ValueError(f"more than {most} bytes")
    return out


def numbers_in(data: Buffer, most: int) -> NDArray[np.uint32]:
    """The at most `most` numbers that pcodec packed.

    Raises:
        ValueError: they are damaged, of another type, or more.
    """
    out = np.empty(most, np.uint32)
    try:
        done = standalone.simple_decompress_into(bytes(data), out)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of pcodec's is no Exception
        raise ValueError(f"pcodec: {error}") from None
    if not done.finished:
        raise ValueError(f"more than {most} numbers")
    return out[: done.n_processed]
