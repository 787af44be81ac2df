"""Shares restore a secret from any threshold of them; oracle: pycryptodome's own split."""

import itertools
import os

import pytest
from Crypto.Protocol import SecretSharing

from fedprune.secagg.shamir import combine, split


@pytest.mark.parametrize("threshold", [1, 2, 4])
def test_any_as_many_as_the_threshold_restore_it(threshold):
    secret, coefficients = os.urandom(32), os.urandom(32 * (threshold - 1))
    shares = split(secret, coefficients, [1, 2, 7, 300, 5])
    assert all(len(share) == 32 for share in shares.values())
    for chosen in itertools.combinations(shares, threshold):
        assert combine({x: shares[x] for x in chosen}) == secret


def test_fewer_restore_something_else():
    secret = os.urandom(32)
    shares = split(secret, os.urandom(64), [1, 2, 3])
    assert combine({x: shares[x] for x in (1, 2)}) != secret


def test_a_zero_secret_is_one_like_others():
    shares = split(bytes(32), os.urandom(32), [1, 2])
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
