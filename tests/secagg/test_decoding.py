"""Wrong shares are found among right ones, as by trying who could have been right."""

import itertools
import random

import pytest

from fedprune.secagg.decoding import astray
from fedprune.secagg.shamir import combine, split

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
