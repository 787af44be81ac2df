"""Shares restore a secret from any threshold of them; oracle: pycryptodome's own split.

Wrong ones are found among right ones, as by trying who could have been right.
"""

import itertools
import os
import random

import pytest
from Crypto.Protocol import SecretSharing

from fedprune.secagg.decoding import astray
from fedprune.secagg.shamir import combine, split


@pytest.mark.parametrize("threshold", [1, 2, 4])
def test_any_as_many_as_the_threshold_restore_it(threshold):
    secret, coefficients = os.urandom(32), os.urandom(32 * (threshold - 1))
    shares = split(secret, coefficients, [1, 2, 7, 300, 5])
    assert all(len(share) == 32 for share in shares.values())
    for chosen in itertools.combinations(shares, threshold):
        assert combine({x: shares[x] for x in chosen}) == secret


def test_fewer_restore_something_else_and_zeros_are_a_secret_like_others():
    shares = split(bytes(32), os.urandom(64), [1, 2, 3])
    assert combine({x: shares[x] for x in (1, 2)}) != bytes(32)
    assert combine(shares) == bytes(32)


def test_shares_are_those_of_pycryptodome_with_the_same_coefficients(monkeypatch):
    secret, coefficients = os.urandom(32), os.urandom(32 * 2)
    ours = split(secret, coefficients, [1, 2, 3, 4])
    for half in (slice(0, 16), slice(16, 32)):
        start = half.start
        pieces = iter([coefficients[start : start + 16], coefficients[32 + start : 48 + start]])
        monkeypatch.setattr(SecretSharing, "rng", lambda _size, pieces=pieces: next(pieces))
        theirs = dict(SecretSharing.Shamir.split(3, 4, secret[half]))
        assert {x: share[half] for x, share in ours.items()} == theirs


def test_pycryptodome_restores_the_same():
    shares = {x: os.urandom(32) for x in (9, 2, 130, 7)}  # any points lie on some polynomial
    halves = (
        SecretSharing.Shamir.combine([(x, share[half]) for x, share in shares.items()])
        for half in (slice(0, 16), slice(16, 32))
    )
    assert combine(shares) == b"".join(halves)


SECRET = bytes(range(32))


def dealt(points: list[int], threshold: int, draw: random.Random) -> dict[int, bytes]:
    return split(SECRET, draw.randbytes(32 * (threshold - 1)), points)


def bent(share: bytes, how: int, draw: random.Random) -> bytes:
    """All of it, its first half alone, its second half alone, or nothing but zeros."""
    other = draw.randbytes(32)
    return [other, other[:16] + share[16:], share[:16] + other[16:], bytes(32)][how]


@pytest.mark.parametrize(("m", "t"), [(3, 2), (4, 2), (4, 3), (6, 6), (7, 3), (9, 6), (19, 13)])
def test_up_to_half_of_the_surplus_is_found(m, t):
    draw = random.Random(f"{m}{t}")
    for count in range((m - t) // 2 + 1):
        for trial in range(4):
            points = sorted(draw.sample(range(1, 40), m))
            shares = dealt(points, t, draw)
            wrong = draw.sample(points, count)
            shares |= {x: bent(shares[x], trial, draw) for x in wrong}
            assert astray(shares, t) == set(wrong)
            right = [x for x in points if x not in wrong]
            assert combine({x: shares[x] for x in right[:t]}) == SECRET


def test_beyond_it_no_share_is_called_wrong_that_all_others_bear_out():
    """By trying: an answer is the one set whose others, every t of them, give the same secret."""
    draw, m, t = random.Random(5), 6, 3
    for trial in range(3):
        shares = dealt(list(range(1, m + 1)), t, draw)
        wrong = draw.sample(sorted(shares), 2)
        shares |= {x: bent(shares[x], trial % 3, draw) for x in wrong}
        consistent = [
            set(out)
            for count in (0, 1)
            for out in itertools.combinations(shares, count)
            if len({combine({x: shares[x] for x in some}) for some in
                    itertools.combinations([x for x in shares if x not in out], t)}) == 1
        ]  # fmt: skip
        assert consistent == []
        assert astray(shares, t) is None


def test_shares_of_another_secret_are_consistent():
    draw = random.Random(7)
    assert astray(dealt([1, 2, 3, 4, 5], 3, draw), 3) == frozenset()
