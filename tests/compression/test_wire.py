import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.compression.masks import encode_mask
from fedprune.compression.wire import (
    VALUE_TYPES,
    Packet,
    flags_of,
    head_of,
    pack,
    pack_flags,
    values_of,
)

WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2}
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def bits_of(values: torch.Tensor) -> list[int]:
    return values.view(torch.int32).tolist()


@pytest.mark.parametrize("wire", VALUE_TYPES)
@given(numbers=st.lists(FLOATS, max_size=20))
def test_what_comes_back_is_what_was_cast_bit_for_bit(wire: str, numbers: list[float]):
    values = torch.tensor(numbers, dtype=torch.float32)
    packet = pack({"kind": "tune"}, values, wire)
    cast = values if wire == "fp32" else values.to(VALUE_TYPES[wire]).float()
    assert bits_of(values_of(packet)) == bits_of(cast)
    assert len(packet.values) == WIDTH[wire] * len(numbers)
    assert head_of(packet) == {"kind": "tune", "wire": wire}


def test_fp16_keeps_eleven_bits_and_bf16_eight():
    values = torch.tensor([1 + 2**-10, 1 + 2**-11, 1 + 2**-7, 1 + 2**-8, 1e5, 1e-30])
    fp16, bf16 = (values_of(pack({}, values, wire)).tolist() for wire in ("fp16", "bf16"))
    assert fp16 == [1 + 2**-10, 1.0, 1 + 2**-7, 1 + 2**-8, float("inf"), 0.0]
    assert bf16[:4] == [1.0, 1.0, 1 + 2**-7, 1.0]
    assert bf16[4] == pytest.approx(1e5, rel=2**-8)
    assert bf16[5] == pytest.approx(1e-30, rel=2**-8)


def test_the_size_is_head_values_and_bits():
    packet = Packet(b"head!", b"values", b"bit")
    assert (packet.size(), packet.size(bits=False)) == (14, 11)
    assert Packet(b"x").size() == 1


def test_what_is_decoded_may_be_worked_on():
    packet = pack({}, torch.ones(3), "fp32")
    values_of(packet).zero_()
    assert values_of(packet).tolist() == [1.0] * 3


def test_values_may_be_a_read_only_view():
    packet = pack({}, torch.ones(3), "bf16")
    view = memoryview(bytes(packet.values)).toreadonly()
    assert values_of(Packet(packet.head, view)).tolist() == [1.0] * 3


@pytest.mark.parametrize("wire", ["fp8", "", None, 32, "FP32"])
def test_values_of_a_foreign_type_are_refused(wire: object):
    packet = Packet(json.dumps({"wire": wire}).encode(), b"1234")
    with pytest.raises(ValueError, match="expected one of fp32, fp16, bf16"):
        values_of(packet)


def test_a_head_without_a_type_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        values_of(Packet(b"{}", b"1234"))


@pytest.mark.parametrize(
    ("wire", "size"), [("fp32", 1), ("fp32", 6), ("fp32", 7), ("fp16", 3), ("bf16", 1)]
)
def test_bytes_that_are_no_whole_number_of_values_are_refused(wire: str, size: int):
    packet = Packet(json.dumps({"wire": wire}).encode(), bytes(size))
    with pytest.raises(ValueError, match=f"{size} bytes of values are no whole number of {wire}"):
        values_of(packet)


@pytest.mark.parametrize("head", [b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", b'"text"'])
def test_a_head_that_is_no_json_object_is_refused(head: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 (json's own message, or ours)
        head_of(Packet(head))


@given(st.lists(st.booleans(), max_size=70))
def test_flags_come_back_as_they_went(flags: list[bool]):
    flat = torch.tensor(flags, dtype=torch.bool)
    data = pack_flags(flat)
    assert flags_of(data, len(flags)).tolist() == flags
    assert flags_of(memoryview(data), len(flags)).tolist() == flags
    for other in (len(flags) + 1, len(flags) + 8):
        with pytest.raises(ValueError, match=f"expected {other} flags"):
            flags_of(data, other)


def test_a_mask_of_named_tensors_is_no_flags():
    with pytest.raises(ValueError, match="expected 2 flags"):
        flags_of(encode_mask({"w": torch.tensor([True, False])}), 2)


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(40)])
def test_foreign_bytes_are_no_flags(data: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 (the mask codec's own message)
        flags_of(data, 2)
