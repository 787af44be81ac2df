"""Whole secure sums: whoever drops out, the sum is right or there is none, and a reason."""

import hashlib
import random

import numpy as np
import pytest

from fedprune.secagg.fixed_point import ring_type
from fedprune.secagg.graph import STAGES
from fedprune.secagg.rehearsal import rehearse
from fedprune.secagg.server import Unrecoverable
from fedprune.secagg.terms import Terms


def seed(member, session=b"s"):
    return hashlib.sha256(session + str(member).encode()).digest()


def drawn_terms(rng, n, bits, session):
    k = rng.randint(max(1, n // 2), n - 1)
    k = min(k + (k * n) % 2, n - 1)
    members = tuple(sorted(rng.sample(range(1000), n)))
    return Terms(session, members, k, k // 2 + 1 + rng.randint(0, k) // 4, bits)


def drawn_vectors(terms, length, rng):
    gen = np.random.default_rng(rng.randrange(2**32))
    return {
        m: gen.integers(0, 2**terms.bits, length, ring_type(terms.bits), endpoint=False)
        for m in terms.members
    }


def of(terms, session=b"s"):
    return {m: seed(m, session) for m in terms.members}


def expected(vectors, members):
    chosen = [vectors[m] for m in sorted(members)]
    return np.add.reduce(chosen, dtype=chosen[0].dtype)


LATE = ("confirm", "unmask")
"""Who drops out then is in the sum."""


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("stage", STAGES)
def test_any_single_client_may_drop_out_at_any_stage(stage, bits):
    terms = Terms(b"one", tuple(range(6)), 5, 4, bits)
    vectors = drawn_vectors(terms, 5, random.Random(bits))
    for lost in terms.members:
        done = rehearse(of(terms), vectors, terms, {stage: {lost}})
        assert done.summed == frozenset(terms.members) - ({lost} if stage not in LATE else set())
        np.testing.assert_array_equal(done.total, expected(vectors, done.summed))


@pytest.mark.slow
def test_trials_with_three_in_ten_gone_at_any_stage_are_right_or_retried_with_a_reason():
    rng, reasons = random.Random(5), []
    for trial in range(60):
        terms = drawn_terms(rng, rng.randint(5, 16), rng.choice([32, 64]), str(trial).encode())
        vectors = drawn_vectors(terms, 3, rng)
        gone = set(rng.sample(terms.members, max(1, round(0.3 * len(terms.members)))))
        try:
            done = rehearse(of(terms), vectors, terms, {STAGES[trial % len(STAGES)]: gone})
        except Unrecoverable as error:
            reasons.append(str(error))
            left = tuple(sorted(set(terms.members) - gone))
            k = len(left) - 1
            terms = Terms(terms.session + b" again", left, k, k // 2 + 1, terms.bits)
            done = rehearse(of(terms, b"again"), vectors, terms, {})
            assert done.summed == frozenset(left)
        np.testing.assert_array_equal(done.total, expected(vectors, done.summed))
    assert 0 < len(reasons) < 45  # both ways were taken
    assert all("fewer than" in why or "connected" in why for why in reasons)


def test_drop_outs_at_all_stages_of_one_sum():
    terms = Terms(b"all", tuple(range(12)), 11, 6, 64)
    vectors = drawn_vectors(terms, 4, random.Random(1))
    gone = {"keys": {0}, "shares": {5}, "masked": {7}, "confirm": {3}, "unmask": {2}}
    done = rehearse(of(terms), vectors, terms, gone)
    assert done.summed == frozenset(terms.members) - {0, 5, 7}
    np.testing.assert_array_equal(done.total, expected(vectors, done.summed))


def test_the_same_seeds_give_the_same_messages_and_leave_vectors_alone():
    terms = Terms(b"twice", tuple(range(4)), 3, 2, 32)
    vectors = drawn_vectors(terms, 4, random.Random(2))
    before = {m: v.copy() for m, v in vectors.items()}
    one, two = (rehearse(of(terms), vectors, terms, {}) for _ in range(2))
    np.testing.assert_array_equal(one.total, two.total)
    for member in terms.members:
        np.testing.assert_array_equal(vectors[member], before[member])
