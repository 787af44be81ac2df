"""Secrets of 32 bytes in shares, any `threshold` of which restore them and fewer say nothing.

Shamir 1979, over GF(2^128) as in pycryptodome, each half of a secret by itself. The coefficients
come from the caller instead of the operating system, so that a client can be computed again
anywhere; pycryptodome's `Shamir.split` does not allow that, so the polynomial is evaluated here,
with its field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_HALF = 16


def split(secret: bytes, coefficients: bytes, points: Iterable[int]) -> dict[int, bytes]:
    """A share of 32 bytes for each point.

    Args:
        secret: 32 bytes.
        coefficients: 32 secret, uniform bytes for each share beyond the first that is needed to
            restore, so the threshold is len(coefficients) / 32 + 1.
        points: where to evaluate, from 1.
    """
    halves = [secret[:_HALF], secret[_HALF:]]
    pieces = [coefficients[i : i + _HALF] for i in range(0, len(coefficients), _HALF)]
    polynomials = [[*pieces[half::2], halves[half]] for half in (0, 1)]
    return {x: b"".join(_value(polynomial, x) for polynomial in polynomials) for x in points}


def _value(polynomial: list[bytes], x: int) -> bytes:
    """By Horner's rule, the highest coefficient first."""
    from Crypto.Protocol.SecretSharing import _Element

    point, total = _Element(x), _Element(0)
    for coefficient in polynomial:
        total = point * total + _Element(coefficient)  # type: ignore[operator]  # stub says int
    return bytes(total.encode())


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from shares by point; exactly as many as the threshold.

    With a wrong share the result is a wrong secret and no error: compare it with a commitment.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    first = Shamir.combine([(x, share[:_HALF]) for x, share in shares.items()], False)
    return first + Shamir.combine([(x, share[_HALF:]) for x, share in shares.items()], False)
