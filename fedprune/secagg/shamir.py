"""Secrets of 32 bytes in shares, any `threshold` of which restore them and fewer say nothing.

Shamir 1979, as in pycryptodome, over its field GF(2^128), each half of a secret by itself: shares
are those of its `Shamir.split` and restore with its `Shamir.combine`. Two things it does not allow
are why the polynomials are evaluated here: coefficients come from the caller instead of the
operating system, so that a client can be computed again anywhere, and weights are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

_HALF = 16


def split(secret: bytes, coefficients: bytes, points: Iterable[int]) -> dict[int, bytes]:
    """A share of 32 bytes for each point.

    Args:
        secret: 32 bytes.
        coefficients: 32 secret, uniform bytes for each share beyond the first that is needed to
            restore, so the threshold is len(coefficients) / 32 + 1.
        points: where to evaluate, from 1.
    """
    from Crypto.Protocol.SecretSharing import _Element

    pieces = [coefficients[i : i + _HALF] for i in range(0, len(coefficients), _HALF)]
    pieces += [secret[:_HALF], secret[_HALF:]]
    halves = [[_Element(piece) for piece in pieces[half::2]] for half in (0, 1)]
    out = {}
    for x in points:
        totals = [_Element(0), _Element(0)]
        for half, polynomial in enumerate(halves):  # Horner's rule, the highest power first
            for coefficient in polynomial:
                totals[half] = _Element(x) * totals[half] + coefficient  # type: ignore[operator]
        out[x] = b"".join(bytes(total.encode()) for total in totals)
    return out


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from shares by point; exactly as many as the threshold.

    With a wrong share the result is a wrong secret and no error: compare it with a commitment.
    """
    from Crypto.Protocol.SecretSharing import _Element

    totals = [_Element(0), _Element(0)]
    for weight, share in zip(_weights(tuple(shares)), shares.values(), strict=True):
        for half, part in enumerate((share[:_HALF], share[_HALF:])):
            totals[half] += _Element(weight) * _Element(part)  # type: ignore[operator]
    return b"".join(bytes(total.encode()) for total in totals)


@lru_cache(maxsize=4096)
def _weights(points: tuple[int, ...]) -> tuple[bytes, ...]:
    """What to multiply the shares at these points with: Lagrange's polynomials at 0.

    As `Shamir.combine` computes them; here they serve both halves, and in a complete graph, where
    the same points come again, all sums.
    """
    from Crypto.Protocol.SecretSharing import _Element

    out = []
    for point in points:
        above, below = _Element(1), _Element(1)
        for other in points:
            if other != point:
                above *= _Element(other)  # type: ignore[operator]  # the stub says int
                below *= _Element(point) + _Element(other)  # type: ignore[operator]
        out.append(bytes((above * below.inverse()).encode()))  # type: ignore[operator]
    return tuple(out)
