import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.codec.stochastic_rounding import BITS, CHUNK, decode_rounded, encode_rounded
from fedprune.codec.wire import head_of, pack, values_of


def arrived(values: torch.Tensor, bits: int, seed: int = 0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return decode_rounded(encode_rounded(values, bits, gen), bits, len(values))


def drawn(size: int, seed: int = 1) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=gen) * torch.rand(size, generator=gen) ** 4


def steps(values: torch.Tensor, bits: int) -> torch.Tensor:
    """The distance of two levels, for every value."""
    padded = torch.nn.functional.pad(values, (0, -len(values) % CHUNK)).view(-1, CHUNK)
    return (padded.abs().amax(1) / (2 ** (bits - 1) - 1)).repeat_interleave(CHUNK)[: len(values)]


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS.values())
def test_on_average_nothing_is_lost(bits):
    values, times = drawn(700), 4000
    off = sum(arrived(values, bits, seed).double() for seed in range(times)) / times - values
    step = steps(values, bits)
    # A draw of two values a step apart has a standard deviation of at most half a step: 700 means
    # of 4000 draws stay within 5 standard errors (all of them with a probability of 0.9996).
    assert (off.abs() <= 5 * (step / 2) / times**0.5 + 1e-6 * step).all()
    nearest = torch.round(values / step) * step
    assert (nearest - values).abs().mean() > 10 * off.abs().mean(), "rounding to the nearest loses"


@given(
    size=st.integers(0, 2 * CHUNK + 3),
    bits=st.sampled_from([4, 8]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    seed=st.integers(0, 9),
)
def test_what_arrives_is_a_neighbouring_level(size, bits, scale, seed):
    values = drawn(size, seed) * scale
    values[::3] = 0.0
    back = arrived(values, bits, seed)
    assert not back[::3].any(), "0 arrives as 0"
    assert ((back - values).abs() <= steps(values, bits) * (1 + 1e-5)).all()
    assert (back * values >= 0).all()
    data = encode_rounded(values, bits, torch.Generator())
    assert len(data) == 4 * -(-size // CHUNK) + -(-size * bits // 8)


def test_levels_themselves_arrive_exactly():
    values = torch.arange(-7, 8).float()
    assert all(torch.equal(arrived(values, 4, seed), values) for seed in range(20))
    values = torch.arange(-127, 128).float() * 0.5
    assert all(torch.equal(arrived(values, 8, seed), values) for seed in range(20))


def test_the_same_generator_gives_the_same_bytes_and_another_one_others():
    values = drawn(900)
    first, again, other = (
        encode_rounded(values, 8, torch.Generator().manual_seed(s)) for s in (4, 4, 5)
    )
    assert first == again != other


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", BITS.values())
def test_what_is_not_finite_arrives_so(bad, bits):
    values = drawn(2 * CHUNK)
    values[5] = bad
    back = arrived(values, bits)
    assert not torch.isfinite(back[5])
    assert torch.isfinite(back[CHUNK:]).all()


def test_bytes_that_are_not_so_many_values_are_refused():
    data = encode_rounded(drawn(9), 4, torch.Generator())
    for count in (-1, 8, 11, CHUNK * 4):
        with pytest.raises(ValueError, match=f"bytes are not {count} values of 4 bits"):
            decode_rounded(data, 4, count)


@pytest.mark.parametrize("wire", BITS)
def test_a_packet_carries_them(wire):
    values = drawn(1001)
    packet = pack(
        {"kind": "tune"}, {"values": (values, wire)}, gen=torch.Generator().manual_seed(0)
    )
    assert head_of(packet) == {"kind": "tune", "wire": wire, "count": 1001}
    assert torch.equal(values_of(packet), arrived(values, BITS[wire]))
    assert packet.size() < 1001 * BITS[wire] / 8 + 70
