import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.codec.flags import flags_of, pack_flags
from fedprune.codec.masks import encode_mask
from fedprune.codec.wire import SCORE_TYPES, VALUE_TYPES, Packet, head_of, pack, values_of

WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2}
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def bits_of(values: torch.Tensor) -> list[int]:
    return values.view(torch.int32).tolist()


@pytest.mark.parametrize("wire", VALUE_TYPES)
@given(numbers=st.lists(FLOATS, max_size=20))
def test_what_comes_back_is_what_was_cast_bit_for_bit(wire, numbers):
    values = torch.tensor(numbers, dtype=torch.float32)
    packet = pack({"kind": "tune"}, {"values": (values, wire)})
    cast = values if wire == "fp32" else values.to(VALUE_TYPES[wire]).float()
    assert bits_of(values_of(packet)) == bits_of(cast)
    assert len(packet["values"]) == WIDTH[wire] * len(numbers)
    assert head_of(packet) == {"kind": "tune", "wire": wire}


def test_fp16_keeps_eleven_bits_and_bf16_eight():
    values = torch.tensor([1 + 2**-10, 1 + 2**-11, 1 + 2**-7, 1 + 2**-8, 1e5, 1e-30])
    fp16, bf16 = (
        values_of(pack({}, {"values": (values, wire)})).tolist() for wire in ("fp16", "bf16")
    )
    assert fp16 == [1 + 2**-10, 1.0, 1 + 2**-7, 1 + 2**-8, float("inf"), 0.0]
    assert bf16[:4] == [1.0, 1.0, 1 + 2**-7, 1.0]
    assert bf16[4] == pytest.approx(1e5, rel=2**-8)
    assert bf16[5] == pytest.approx(1e-30, rel=2**-8)


def test_the_size_is_head_values_and_bits():
    packet = Packet({"head": b"head!"}, {"values": b"values", "bits": b"bit"})
    assert packet.size() == 14
    assert Packet({"head": "é", "n": 12}).size() == 4


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_what_is_decoded_may_be_worked_on_and_come_from_a_read_only_view(wire):
    packet = pack({}, {"values": (torch.ones(3), wire)})
    view = memoryview(bytes(packet["values"])).toreadonly()
    for each in (packet, Packet(packet.fields, {"values": view})):
        values_of(each).zero_()
        assert values_of(each).tolist() == [1.0] * 3


@pytest.mark.parametrize("head", [{}, *({"wire": w} for w in ("fp8", "", None, 32, "FP32"))])
def test_values_of_a_foreign_type_are_refused(head):
    packet = Packet({"head": json.dumps(head)}, {"values": b"1234"})
    with pytest.raises(ValueError, match="expected one of fp32, fp16, bf16"):
        values_of(packet)


@pytest.mark.parametrize(
    ("wire", "size"), [("fp32", 1), ("fp32", 6), ("fp32", 7), ("fp16", 3), ("bf16", 1)]
)
def test_bytes_that_are_no_whole_number_of_values_are_refused(wire, size):
    packet = Packet({"head": json.dumps({"wire": wire})}, {"values": bytes(size)})
    with pytest.raises(ValueError, match=f"{size} bytes of values are no whole number of {wire}"):
        values_of(packet)


@given(st.lists(st.booleans(), max_size=70))
def test_flags_come_back_as_they_went(flags):
    flat = torch.tensor(flags, dtype=torch.bool)
    data = pack_flags(flat)
    assert flags_of(data, len(flags)).tolist() == flags
    assert flags_of(memoryview(data), len(flags)).tolist() == flags
    for other in (len(flags) + 1, len(flags) + 8):
        with pytest.raises(ValueError, match=f"expected {other} flags"):
            flags_of(data, other)


NAMED = encode_mask({"w": torch.tensor([True, False])})


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(40), NAMED])
def test_foreign_bytes_are_no_flags(data):
    with pytest.raises(ValueError):  # noqa: PT011 (the mask codec's own message)
        flags_of(data, 2)


SCALED = [name for name in SCORE_TYPES.values() if name not in VALUE_TYPES]
WORST = {"fp16-scaled": 2.0**-11, "log8": 0.123}
LEAST = {"fp16-scaled": 2.0**-14, "log8": 2.0**-42}
"""Of the largest value: from here on up the relative bound holds."""


def back(values: torch.Tensor, wire: str) -> torch.Tensor:
    return values_of(pack({}, {"values": (values, wire)}))


@pytest.mark.parametrize("wire", SCALED)
@given(
    numbers=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30),
    exponent=st.integers(-60, 60),
)
def test_a_scaled_value_is_nearly_what_it_was(wire, numbers, exponent):
    values = torch.tensor(numbers) * 2.0**exponent
    largest = float(values.abs().max())
    if largest < 1e-30:  # subnormal results have fewer bits of their own
        return
    seen = back(values, wire)
    off = (seen - values).abs()
    big = values.abs() >= largest * LEAST[wire]
    assert (off[big] <= WORST[wire] * 1.001 * values.abs()[big]).all()
    assert (
        off[~big] <= WORST[wire] * LEAST[wire] * 1.001 * largest + 1e-45
    ).all() or wire == "log8"
    assert (off <= values.abs() * 1.13 + 1e-45).all() or wire != "log8"
    assert (seen[values == 0] == 0).all()
    nonzero = seen != 0
    assert torch.equal(seen[nonzero] < 0, values[nonzero] < 0), "signs stay"
    assert float(seen.abs().max()) == pytest.approx(largest, rel=1e-6), "the largest stays"


@pytest.mark.parametrize(("wire", "width"), [("fp16-scaled", 2), ("log8", 1)])
def test_scaled_values_are_that_small(wire, width):
    assert set(SCALED) == WORST.keys() == LEAST.keys(), "each has its bound here"
    packet = pack({"kind": "score"}, {"values": (torch.randn(1000), wire)})
    assert len(packet["values"]) == 1000 * width
    assert head_of(packet)["scale"] > 1


@pytest.mark.parametrize("wire", SCALED)
@pytest.mark.parametrize("values", [[], [0.0], [0.0, -0.0]])
def test_nothing_and_nought_come_back(wire, values):
    assert back(torch.tensor(values), wire).tolist() == values


@pytest.mark.parametrize("wire", SCALED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_does_not_become_finite(wire, bad):
    """The receiver's check refuses the answer then."""
    assert not torch.isfinite(back(torch.tensor([1.0, bad, 2.0]), wire)).all()


def test_log8_keeps_the_order_and_two_decades_apart():
    values = torch.logspace(-12, 0, 60).sort().values
    seen = back(values, "log8")
    assert (seen.diff() >= 0).all()
    assert len(seen.unique()) > 55
    assert back(torch.tensor([1.0, 2.0**-42, 2.0**-44]), "log8").tolist() == [1.0, 2.0**-42, 0.0]


@pytest.mark.parametrize("wire", ["fp32", "fp16-scaled", "log8"])
def test_a_second_buffer_has_a_type_of_its_own(wire):
    more = torch.tensor([3.0, -0.5, 0.0])
    packet = pack({}, {"values": (torch.ones(4), "bf16"), "more": (more, wire)}, b"bits")
    assert values_of(packet).tolist() == [1.0] * 4
    assert values_of(packet, "more").tolist() == pytest.approx(more.tolist(), rel=0.123)
    assert packet.size() == len(packet.head) + 8 + 4 + len(packet["more"])
    empty = (torch.empty(0), "fp32")
    assert "more" not in pack({}, {"values": empty, "more": empty}).buffers
    assert values_of(pack({}, {"values": (torch.ones(4), "bf16")}), "more").numel() == 0
