"""Which shares of a secret are wrong, where more came than it takes.

Shares at m points of a polynomial of degree below t are a word of a generalised Reed-Solomon code
with m - t checks, in which up to (m - t) / 2 wrong ones are found (Berlekamp 1968; Massey 1969,
"Shift-register synthesis and BCH decoding"). Nothing here is secret to who has the shares, so it
need not take the same time for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import xor

_HALF = 16
_FIELD = 1 + 2 + 4 + 128 + 2**128
"""GF(2^128) of pycryptodome's `Shamir`."""


def astray(shares: Mapping[int, bytes], threshold: int) -> frozenset[int] | None:
    """The points whose shares are not on the polynomial that the others are on.

    Returns:
        None where they are more than half of those beyond the threshold: then nothing is known.
    """
    points = sorted(shares)
    products = [reduce(_times, (x ^ other for other in points if other != x), 1) for x in points]
    weights = list(map(_inverse, products))
    out: set[int] = set()
    for half in (slice(_HALF), slice(_HALF, None)):
        said = [int.from_bytes(shares[x][half], "big") for x in points]
        terms = [_times(weight, value) for weight, value in zip(weights, said, strict=True)]
        checks = []
        for _ in range(len(points) - threshold):
            checks.append(_sum(terms))
            terms = [_times(x, term) for x, term in zip(points, terms, strict=True)]
        locator = _locator(checks)
        found = [x for x in points if not _value(locator, x)]
        if len(found) != len(locator) - 1 or 2 * len(found) > len(checks):
            return None
        out |= set(found)
    return frozenset(out) if 2 * len(out) <= len(points) - threshold else None


def _locator(checks: Sequence[int]) -> list[int]:
    """The shortest recurrence of the checks, the highest coefficient first: roots are the errors.

    The names are Massey's.
    """
    c, b, size, shift, before = [1], [1], 0, 1, 1
    for n, check in enumerate(checks):
        d = check ^ _sum(_times(c[i], checks[n - i]) for i in range(1, min(size, len(c) - 1) + 1))
        if not d:
            shift += 1
            continue
        kept, factor = c, _times(d, _inverse(before))
        c = c + [0] * (len(b) + shift - len(c))
        for i, coefficient in enumerate(b):
            c[i + shift] ^= _times(factor, coefficient)
        if 2 * size <= n:
            size, b, before, shift = n + 1 - size, kept, d, 1
        else:
            shift += 1
    return (c + [0] * size)[: size + 1]


def _value(coefficients: Sequence[int], x: int) -> int:
    total = 0
    for coefficient in coefficients:
        total = _times(x, total) ^ coefficient
    return total


def _sum(values: Iterable[int]) -> int:
    return reduce(xor, values, 0)


def _times(one: int, other: int) -> int:
    out, few, many = 0, min(one, other), max(one, other)
    while few:
        if few & 1:
            out ^= many
        few >>= 1
        many <<= 1
        if many >> 128:
            many ^= _FIELD
    return out


def _inverse(value: int) -> int:
    from Crypto.Protocol.SecretSharing import _Element

    return int(_Element(value).inverse())
