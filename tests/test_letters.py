import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedprune.compression.wire import Packet
from fedprune.letters import Letter, check_sum, folded_of, packet_of, question_letter, sum_letter
from fedprune.messages import Failure, Folded, Refused
from fedprune.pruning.layout import Layout

SIZES = {"w": torch.Size([4]), "b": torch.Size([1])}
LAYOUT = Layout(SIZES, ("w",), ("b",), {})
MASKS = {"w": torch.tensor([True, True, False, True])}
FOLDED = Folded(
    torch.tensor([1.0, 1e-300, -3.25], dtype=torch.float64),
    8.5,
    {"count": 11.0},
    torch.tensor([2, 0, 1]),
    (4, 7),
    (Failure(5, "score", "w", "NaN or infinite"),),
    321,
)
ASKED = [4, 5, 7]


def about(**changes: Any) -> Letter:
    letter = sum_letter(FOLDED)
    fields = {**json.loads(letter.fields["about"]), **changes}
    return replace(letter, fields={"about": json.dumps(fields)})


def test_a_sum_comes_back_as_it_went():
    seen = folded_of(sum_letter(FOLDED), ASKED)
    assert seen.total is not None
    assert seen.votes is not None
    assert torch.equal(seen.total, FOLDED.total)
    assert torch.equal(seen.votes, FOLDED.votes)
    assert replace(seen, total=None, votes=None) == replace(FOLDED, total=None, votes=None)


def test_a_sum_of_nobody_comes_back_as_it_went():
    nobody = Folded(failures=(Failure(4, "tune", "", "KeyError: 4"),), bytes_up=3)
    assert folded_of(sum_letter(nobody), [4]) == nobody


def test_what_came_can_be_added_to():
    seen = folded_of(sum_letter(FOLDED), ASKED)
    assert seen.total is not None
    seen.total.add_(1.0)
    assert FOLDED.total is not None
    assert FOLDED.total[0] == 1.0


@pytest.mark.parametrize("asked", [[4, 5], [4, 5, 7, 8], [4, 5, 8], []])
def test_who_speaks_for_others_is_refused(asked: list[int]):
    with pytest.raises(Refused, match="speaks for partitions") as e:
        folded_of(sum_letter(FOLDED), asked)
    assert e.value.field == "answered"


@pytest.mark.parametrize("answered", [[4, 4, 7], [4, 5, 7], [7]])
def test_nobody_speaks_twice_or_is_left_out(answered: list[int]):
    with pytest.raises(Refused, match="speaks for partitions"):
        folded_of(about(answered=answered), ASKED)


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
def test_a_field_of_a_wrong_kind_is_refused(changes: dict[str, Any]):
    with pytest.raises(Refused, match="malformed") as e:
        folded_of(about(**changes), ASKED)
    assert e.value.field == "reply"


@pytest.mark.parametrize(
    "letter",
    [
        Letter({}, {}),
        Letter({"about": "{"}, {}),
        Letter({"about": "[]"}, {}),
        Letter({"about": 7}, {}),
        Letter(sum_letter(FOLDED).fields, {"total": b"123456789"}),
        Letter(sum_letter(FOLDED).fields, {"votes": b"1"}),
    ],
    ids=["empty", "no json", "a list", "a number", "nine bytes", "one byte"],
)
def test_a_malformed_letter_is_refused(letter: Letter):
    with pytest.raises(Refused, match="malformed"):
        folded_of(letter, ASKED)


def test_a_good_sum_passes():
    check_sum(FOLDED, "score", MASKS, LAYOUT)
    check_sum(replace(FOLDED, votes=None), "score", MASKS, LAYOUT)
    check_sum(Folded(failures=FOLDED.failures), "score", MASKS, LAYOUT)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"total": None}, "values"),
        ({"total": torch.zeros(4, dtype=torch.float64)}, "values"),
        ({"total": torch.tensor([0.0, float("nan"), 0.0])}, "w"),
        ({"weight": 0.0}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"totals": {"count": float("nan")}}, "count"),
        ({"votes": torch.tensor([1, 1])}, "votes"),
        ({"votes": torch.tensor([1, 1, 1, 1])}, "votes"),
        ({"votes": torch.tensor([3, 1, 1])}, "votes"),
        ({"votes": torch.tensor([0, -1, 1])}, "votes"),
        ({"answered": ()}, "answered"),
        ({"answered": (), "weight": 0.0, "totals": {}, "votes": None}, "answered"),
        ({"answered": (), "weight": 0.0, "totals": {}, "total": None}, "answered"),
        ({"answered": (), "weight": 0.0, "votes": None, "total": None}, "answered"),
    ],
    ids=str,
)
def test_a_sum_that_would_spoil_the_servers_is_refused(changes: dict[str, Any], field: str):
    with pytest.raises(Refused) as e:
        check_sum(replace(FOLDED, **changes), "score", MASKS, LAYOUT)
    assert e.value.field == field


def test_votes_that_nobody_asked_for_are_refused():
    tuned = replace(FOLDED, total=torch.zeros(4), totals={"loss": 1.0, "count": 1.0})
    with pytest.raises(Refused) as e:
        check_sum(tuned, "tune", MASKS, LAYOUT)
    assert e.value.field == "votes"


@pytest.mark.parametrize("bits", [True, False])
def test_a_question_travels_with_its_mask_or_without(bits: bool):
    packet = Packet(b'{"kind":"tune"}', memoryview(b"values"), b"mask")
    letter = question_letter(packet, [3, 4], bits=bits)
    assert letter.fields["partitions"] == [3, 4]
    assert letter.buffers == {"values": b"values"} | ({"bits": b"mask"} if bits else {})
    assert packet_of(letter, b"held") == Packet(
        packet.head, b"values", b"mask" if bits else b"held"
    )
