import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.failures import Failure
from fedprune.protocol.replies import folded_of, sum_packet

FOLDED = Aggregate(
    torch.tensor([1.0, 1e-300, -3.25], dtype=torch.float64),
    8.5,
    {"count": 11.0},
    torch.tensor([2, 0, 1], dtype=torch.uint8),
    (4, 7),
    (Failure(5, "score", "w", "NaN or infinite"),),
    321,
    statistics=torch.tensor([0.1, -7.0], dtype=torch.float64),
    held=torch.tensor([8.5, 0.0, 2.5], dtype=torch.float64),
    singles=torch.tensor([[1.0, 0.0, -3.0], [0.1, 1e-40, 0.5]]),
)
ASKED = [4, 5, 7]


def about(**changes: Any) -> Packet:
    packet = sum_packet(FOLDED)
    fields = {**json.loads(packet.fields["about"]), **changes}
    return replace(packet, fields={"about": json.dumps(fields)})


TENSORS = [f.name for f in fields(Aggregate) if isinstance(getattr(FOLDED, f.name), torch.Tensor)]


def test_a_sum_comes_back_as_it_went():
    seen = folded_of(sum_packet(FOLDED), ASKED)
    assert set(TENSORS) == {"total", "votes", "statistics", "held", "singles"}
    for name in TENSORS:
        there, here = getattr(FOLDED, name), getattr(seen, name)
        assert (here.dtype, here.shape) == (there.dtype, there.shape), name
        assert torch.equal(here, there), name
    bare = dict.fromkeys(TENSORS)
    assert replace(seen, **bare) == replace(FOLDED, **bare)
    seen.total.add_(1.0)  # it can be added to
    assert FOLDED.total[0] == 1.0


@pytest.mark.parametrize("name", TENSORS)
def test_what_is_not_in_a_sum_is_not_in_its_packet(name):
    packet = sum_packet(replace(FOLDED, **{name: None}))
    assert packet.buffers.keys() == set(TENSORS) - {name}
    assert getattr(folded_of(packet, ASKED), name) is None


@pytest.mark.parametrize(("answered", "size"), [([4, 5, 7], 8), ([], 4), ([], 0)])
def test_values_one_by_one_that_cannot_be_of_those_who_answered_are_refused(answered, size):
    packet = about(answered=answered, failures=[])
    torn = replace(packet, buffers={**packet.buffers, "singles": bytes(4 * size)})
    with pytest.raises(Refused, match="malformed"):
        folded_of(torn, answered)


def test_a_sum_of_nobody_comes_back_as_it_went():
    nobody = Aggregate(failures=(Failure(4, "tune", "", "KeyError: 4"),), bytes_up=3)
    assert folded_of(sum_packet(nobody), [4]) == nobody


def test_who_speaks_for_others_or_twice_or_leaves_one_out_is_refused():
    odd = [(sum_packet(FOLDED), asked) for asked in ([4, 5], [4, 5, 7, 8], [4, 5, 8], [])]
    odd += [(about(answered=answered), ASKED) for answered in ([4, 4, 7], [4, 5, 7], [7])]
    for packet, asked in odd:
        with pytest.raises(Refused, match="speaks for partitions") as e:
            folded_of(packet, asked)
        assert e.value.field == "answered"


FAILED = {"partition": 5, "phase": "score", "field": "", "reason": ""}


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": "heavy"},
        {"weight": None},
        {"totals": [1, 2]},
        {"totals": {"count": "many"}},
        {"answered": 4},
        {"answered": ["four", 7]},
        {"failures": [{"partition": 5}]},
        {"failures": [{**FAILED, "partition": "five"}]},
        {"failures": [{**FAILED, "partition": None}]},
        {"failures": [{**FAILED, "more": 1}]},
        {"failures": [5]},
        {"bytes_up": float("inf")},
        {"bytes_up": float("nan")},
        {"bytes_up": []},
    ],
    ids=str,
)
def test_a_field_of_a_wrong_kind_is_refused(changes):
    with pytest.raises(Refused, match="malformed") as e:
        folded_of(about(**changes), ASKED)
    assert e.value.field == "reply"


def test_a_malformed_packet_is_refused():
    fields = sum_packet(FOLDED).fields
    odd = [({}, {}), ({"about": "{"}, {}), ({"about": "[]"}, {}), ({"about": 7}, {})]
    odd += [(fields, {"total": b"123456789"}), (fields, {"held": b"1"})]
    for packet in odd:
        with pytest.raises(Refused, match="malformed"):
            folded_of(Packet(*packet), ASKED)
