"""The integers modulo 2^32 or 2^64, as numpy's unsigned ones: their sums wrap by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.unsignedinteger[Any]]
"""A flat vector of uint32 or uint64."""


def ring_type(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The numpy type of `bits` bits."""
    return np.dtype(np.uint32 if bits == 32 else np.uint64)
