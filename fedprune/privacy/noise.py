"""Noise: Gaussian for sums in the clear, Skellam for sums of integers.

It is made from 64-bit words of a source of its own, never from a global generator. A secret source,
the default, is a ChaCha20 keystream under 32 bytes of the operating system's. A seeded one gives
the same words again, which is what a study wants and hides nothing from whoever knows the seed.

Not guaranteed: a Gaussian in float64 is not one on the real line. Its lowest bits can tell what
was added to what (Mironov 2012, doi 10.1145/2382196.2382264); Skellam noise is exact on integers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import Philox
from torch import Tensor

from fedprune.randomness import derive

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

LARGEST_VARIANCE = 2.0**96
"""The largest variance of Skellam noise: its values are then exact in float64."""


@dataclass(frozen=True)
class Source:
    """Where noise comes from: so many new 64-bit words; it goes on with every draw.

    If it is `secret`, nobody can have the same words again.
    """

    words: Callable[[int], Words]
    secret: bool


def seeded_source(seed: int, purpose: str, *where: int) -> Source:
    """Philox under a key that depends on what it is for: to study, not to hide."""
    stream = Philox(key=derive(seed, purpose, *where))
    return Source(lambda n: np.asarray(stream.random_raw(n), dtype=np.uint64), secret=False)


def secret_source() -> Source:
    """The keystream under a key of the operating system's; without cryptography its own words.

    These are as secret, and slower.
    """
    if find_spec("cryptography") is None:
        return Source(lambda n: _words_in(os.urandom(8 * n)), secret=True)
    return keyed_source(os.urandom(32), secret=True)


def keyed_source(key: bytes, *, secret: bool) -> Source:
    """The ChaCha20 keystream (RFC 8439) under a key of 32 bytes that is used for nothing else.

    Raises:
        ValueError: the package cryptography is missing.
    """
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
    except ImportError:
        raise ValueError(
            "a keystream needs the package cryptography; allowed: pip install 'fedprune[privacy]'"
        ) from None
    # A key is used for one stream, so that its nonce may be anything.
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return Source(lambda n: _words_in(stream.update(bytes(8 * n))), secret=secret)


def _words_in(data: bytes) -> Words:
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def uniforms(size: int, source: Source) -> Floats:
    """Float64 on a grid of 2⁵² points strictly between 0 and 1."""
    return ((source.words(size) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


DRAWN_AT_ONCE = 2**20
"""How many numbers are drawn at a time, so that only the result is as large as the model."""


def gaussian(size: int, sd: float, source: Source) -> Tensor:
    """`size` independent normals with mean 0 and this standard deviation, float64.

    Box and Muller 1958; none is further than 8.6 standard deviations from 0.
    """
    out = np.empty(size)
    for start in range(0, size, DRAWN_AT_ONCE):
        some = min(DRAWN_AT_ONCE, size - start)
        pairs = (some + 1) // 2
        radius = np.sqrt(-2.0 * np.log(uniforms(pairs, source)))
        angle = 2.0 * math.pi * uniforms(pairs, source)
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        out[start : start + some] = sd * both[:some]
    return torch.from_numpy(out)


def skellam(size: int, variance: float, source: Source) -> Integers:
    """`size` independent differences of two Poisson numbers of mean variance/2: mean 0, integer.

    The sum of n of them of variance v/n is one of variance v exactly, so that clients can share
    noise out between them (Agarwal, Kairouz and Liu 2021, arXiv 2110.04995, sect. 2).

    Raises:
        ValueError: the variance is negative, no number, or above `LARGEST_VARIANCE`.
    """
    if not 0.0 <= variance <= LARGEST_VARIANCE:
        raise ValueError(f"variance={variance}: out of range; allowed: 0 to {LARGEST_VARIANCE:g}")
    out = np.empty(size, dtype=np.int64)
    for start in range(0, size, DRAWN_AT_ONCE):
        some = min(DRAWN_AT_ONCE, size - start)
        left, right = (_poisson_offsets(some, variance / 2.0, source) for _ in range(2))
        out[start : start + some] = left - right
    return out


def _poisson_offsets(size: int, mean: float, source: Source) -> Integers:
    """Poisson numbers less the whole part of their mean: exact where it is large, too."""
    if mean < 10.0:
        return _by_inversion(size, mean, source) - math.floor(mean)
    out = np.empty(size, dtype=np.int64)
    done = 0
    while done < size:
        found = _tried(size - done, mean, source)
        out[done : done + len(found)] = found
        done += len(found)
    return out


def _by_inversion(size: int, mean: float, source: Source) -> Integers:
    """Poisson numbers of a small mean: the first at which the distribution is above a uniform."""
    most = 100  # beyond it lies less than 1e-60 for a mean below 10
    steps = np.concatenate([[1.0], np.full(most, mean) / np.arange(1, most + 1)])
    below = math.exp(-mean) * np.cumsum(np.cumprod(steps))
    return np.searchsorted(below, uniforms(size, source)).clip(max=most).astype(np.int64)


def _tried(size: int, mean: float, source: Source) -> Integers:
    """The accepted of `size` proposals of transformed rejection, as offsets, in order.

    Hoermann 1993, doi 10.1016/0167-6687(93)90997-4, algorithm PTRS, for means from 10 on.
    Departure: whole parts of the mean are left out of the proposal, and the logarithm of the
    probability is taken so that large terms do not cancel (Loader 2000).
    """
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    scale = 1.1239 + 1.1328 / (b - 3.4)
    u, v = uniforms(size, source) - 0.5, uniforms(size, source)
    edge = 0.5 - np.abs(u)
    whole = math.floor(mean)
    k = np.floor((2.0 * a / edge + b) * u + (mean - whole) + 0.43)
    sure = (edge >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2.0))
    open_ = ~sure & (k >= -whole) & ~((edge < 0.013) & (v > edge))
    height = np.log(v * scale / (a / (edge * edge) + b))
    # Where the proposal is refused anyway its probability is not looked at.
    likely = height <= _log_probability(np.where(open_, k, 0.0), mean)
    accepted: Integers = k[sure | (open_ & likely)].astype(np.int64)
    return accepted


def _log_probability(offsets: Floats, mean: float) -> Floats:
    """Logarithm of the Poisson probability of whole(mean) + offset, which is not negative."""
    whole = math.floor(mean)
    k, d = whole + offsets, (offsets - (mean - whole)) / mean
    with np.errstate(divide="ignore", invalid="ignore"):
        deviance = np.where(k == 0.0, 1.0, (1.0 + d) * np.log1p(d) - d)
    out: Floats = -mean * deviance - _excess(k)
    return out


_FEW = 16
_EXCESS = np.array(
    [math.lgamma(k + 1) - (k * math.log(k) if k else 0.0) + k for k in range(_FEW)],
    dtype=np.float64,
)


def _excess(k: Floats) -> Floats:
    """The logarithm of k!·eᵏ/kᵏ, by Stirling's series where k is large enough for it."""
    n = np.maximum(k, _FEW)
    series = 0.5 * np.log(2.0 * math.pi * n) + 1.0 / (12.0 * n) - 1.0 / (360.0 * n**3)
    series += 1.0 / (1260.0 * n**5)
    few = _EXCESS[np.minimum(k, _FEW - 1).astype(np.int64)]
    return np.where(k < _FEW, few, series)
