"""Real numbers as integers of a ring, with a public step, so that their sum cannot wrap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.options.refusal import Refused

Ring = NDArray[np.unsignedinteger[Any]]
"""A flat vector of uint32 or uint64."""


def ring_type(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The numpy type of `bits` bits."""
    return np.dtype(np.uint32 if bits == 32 else np.uint64)


_BLOCK = 2**17


@dataclass(frozen=True)
class Scale:
    """How numbers become integers; public, and never made from private data.

    Attributes:
        step: value of 1.
        largest: magnitude above which a number is refused.
        whole: numbers must be multiples of the step, so that sums are exact.
    """

    step: float
    largest: float
    whole: bool = False


def scale_for(largest: float, clients: int, bits: int) -> Scale:
    """The finest scale under which `clients` numbers of magnitude `largest` add up without wrap.

    Its step is a power of two, so float32 numbers of at least 2^24 steps are represented exactly.
    Any other is off by half a step at most, a sum of n by n / 2 steps.

    Raises:
        ValueError: `largest` is not within 1e-250 and 1e250, or no client is to be added.
    """
    if not (1e-250 <= largest <= 1e250 and clients >= 1):
        raise ValueError(f"ranges={largest}: allowed: 1e-250 to 1e250, for one client and more")
    step = 2.0 ** (math.frexp(largest)[1] + clients.bit_length() - bits - 1)
    while clients * round(largest / step) > 2 ** (bits - 1) - 1:
        step *= 2
    return Scale(step, largest)


def to_ring(values: NDArray[Any], scale: Scale, bits: int, name: str = "values") -> Ring:
    """Each value as the nearest integer of steps (ties to even), negative ones from the top.

    They are read flat, in blocks; `name` is the field or tensor, for the error.

    Raises:
        Refused: NaN, infinity, a magnitude above `scale.largest` (of which everyone may be told
            `OUT_OF_RANGE`), or a fraction where the scale is for whole numbers. Names
            `name`; the first such value's place, not the value.
    """
    flat = values.reshape(-1)
    out = np.empty(len(flat), ring_type(bits))
    for first in range(0, len(flat), _BLOCK):
        part = flat[first : first + _BLOCK].astype(np.float64)
        fine = np.abs(part) <= scale.largest  # False for NaN
        if not fine.all():
            raise Refused(name, *_reason(part, fine, first, scale))
        units = part / scale.step
        nearest = np.rint(units)
        if scale.whole and (nearest != units).any():
            raise Refused(name, "has fractions where a secure sum adds whole numbers")
        out[first : first + len(part)] = nearest.astype(np.int64).astype(out.dtype)
    return out


OUT_OF_RANGE = "out-of-range"
"""What is told of a number that a secure sum has no room for: not which, nor how large."""


def _reason(part: NDArray[Any], fine: NDArray[Any], first: int, scale: Scale) -> tuple[str, str]:
    """Why, for the client's log, and what of it is told."""
    place = int(np.argmin(fine))
    if not np.isfinite(part[place]):
        return f"coordinate {first + place} is not finite", ""
    what = f"coordinate {first + place} is beyond {scale.largest:g}, the range of a secure sum"
    return what, OUT_OF_RANGE


def from_ring(total: Ring, scale: Scale, bits: int) -> NDArray[np.float64]:
    """A sum of integers as a number; exact up to 2^53 steps, beyond that as float64 rounds."""
    signed = total.view(np.int32 if bits == 32 else np.int64)
    return signed.astype(np.float64) * scale.step
