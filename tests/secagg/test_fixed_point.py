"""Numbers as integers: exact where they can be, refused where they cannot."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.options.refusal import Refused
from fedprune.secagg.fixed_point import Scale, from_ring, ring_type, scale_for, to_ring

BITS = [32, 64]


def added(vectors, bits):
    return np.add.reduce(vectors, dtype=ring_type(bits))


@given(
    st.sampled_from(BITS),
    st.floats(1e-200, 1e200),
    st.integers(1, 5000),
    st.sampled_from([1.0, -1.0]),
)
def test_as_many_as_announced_of_the_largest_magnitude_do_not_wrap(bits, largest, clients, sign):
    scale = scale_for(largest, clients, bits)
    one = int(to_ring(np.array([sign * largest]), scale, bits).astype(f"i{bits // 8}")[0])
    assert -(2 ** (bits - 1)) < clients * one < 2 ** (bits - 1)
    finer = Scale(scale.step / 2, largest)  # twice as fine would not do
    assert clients * round(largest / finer.step) > 2 ** (bits - 1) - 1


@pytest.mark.parametrize("bits", BITS)
def test_capacity_is_exact_at_its_edge(bits):
    edge = (2 ** (bits - 1) - 1) // 7
    scale = Scale(1.0, float(edge if bits == 32 else 2**53), whole=True)
    for sign in (1, -1):
        ones = [to_ring(np.array([sign * scale.largest]), scale, bits)] * 7
        assert from_ring(added(ones, bits), scale, bits)[0] == 7 * sign * scale.largest


@pytest.mark.parametrize("bits", BITS)
def test_a_sum_is_off_by_half_a_step_a_client(bits):
    gen = np.random.default_rng(0)
    values = gen.normal(size=(9, 1000)).clip(-4, 4)
    scale = scale_for(4.0, 9, bits)
    total = from_ring(added([to_ring(v, scale, bits) for v in values], bits), scale, bits)
    assert np.abs(total - values.sum(0)).max() <= 9 * scale.step / 2 + 1e-14
    assert scale.step < 4.0 * 9 / 2 ** (bits - 2)


def test_single_precision_sums_exactly_in_64_bits():
    gen = np.random.default_rng(1)
    values = gen.uniform(0.001, 4, size=(50, 1000)).astype(np.float32)
    scale = scale_for(4.0, 50, 64)
    total = from_ring(added([to_ring(v, scale, 64) for v in values], 64), scale, 64)
    np.testing.assert_array_equal(total, values.astype(np.float64).sum(0))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32])
def test_votes_are_exact(bits, kind):
    gen = np.random.default_rng(2)
    votes = gen.integers(0, 2, size=(21, 5000))
    scale = Scale(1.0, 1.0, whole=True)
    total = added([to_ring(v.astype(kind), scale, bits) for v in votes], bits)
    np.testing.assert_array_equal(from_ring(total, scale, bits), votes.sum(0))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0001, -2.0001, 1e30, -1e308])
def test_what_does_not_fit_is_refused_by_name(bits, bad):
    values = np.zeros(300_000)
    values[200_000] = bad
    with pytest.raises(Refused, match="coordinate 200000") as error:
        to_ring(values, scale_for(2.0, 10, bits), bits, "scores/fc.weight")
    assert error.value.field == "scores/fc.weight"
    assert "2.0001" not in str(error.value)  # a reason that is logged tells no value


def test_fractions_of_a_vote_are_refused():
    with pytest.raises(Refused, match="whole"):
        to_ring(np.array([1.0, 0.5]), Scale(1.0, 1.0, whole=True), 64, "votes")


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, 1e-300])
def test_a_range_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="ranges"):
        scale_for(bad, 3, 64)


@given(st.sampled_from(BITS), st.lists(st.floats(-7.5, 7.5), max_size=20))
def test_one_vector_comes_back_to_half_a_step(bits, values):
    scale = scale_for(7.5, 3, bits)
    back = from_ring(to_ring(np.array(values, np.float64), scale, bits), scale, bits)
    assert np.abs(back - values).max(initial=0) <= scale.step / 2
