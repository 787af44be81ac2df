import dataclasses
from functools import reduce
from itertools import islice
from operator import add
from typing import Any

import pytest
import torch
from torch import Tensor

from fedprune.codec.masks import encode_mask
from fedprune.codec.wire import Packet
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.broadcast import broadcast, decode_question, encode_question
from fedprune.protocol.failures import Failure
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.parts import decode_answer, encode_answer
from fedprune.protocol.question_fields import FIELDS
from fedprune.protocol.replies import folded_of, sum_packet
from fedprune.protocol.running_sum import as_sum, summed
from fedprune.server.diagnostics import agreement_of
from fedprune.structure.layout import Layout
from fedprune.tensors.named import as_bytes

SHAPES = {"conv": (2, 3), "bias": (2,), "head": (4,)}
LAYOUT = Layout({n: torch.Size(s) for n, s in SHAPES.items()}, ("conv", "head"), ("bias",), {})
MASKS = {
    "conv": torch.tensor([[True, False, True], [False, False, True]]),
    "head": torch.tensor([False, True, False, False]),
}


def question(**changes: Any) -> Question:
    weights = {n: torch.randn(s) for n, s in SHAPES.items()}
    weights = {n: w * MASKS[n] if n in MASKS else w for n, w in weights.items()}
    return Question(**{"kind": "tune", "round": 3, "weights": weights, "masks": MASKS} | changes)


def other_buffers(packet: Packet, **buffers: bytes) -> Packet:
    return dataclasses.replace(packet, buffers={**packet.buffers, **buffers})


def answer(values: list[float], weight: float, votes: list[bool] | None = None) -> Answer:
    flags = None if votes is None else torch.tensor(votes)
    return Answer(torch.tensor(values), weight, {"count": weight}, flags)


def test_two_clients_and_three_numbers():
    answers = [
        answer([1.0, 2.0, 3.0], 2.0, [True] * 3),
        answer([10.0, 0.5, -3.0], 6.0, [False] * 3),
    ]
    aggregate = summed(as_sum(a, p, 100 + p) for p, a in enumerate(answers))
    assert aggregate.total.dtype == torch.float64
    assert aggregate.total.tolist() == [62.0, 7.0, -12.0]
    assert (aggregate.weight, aggregate.totals, aggregate.answered) == (8.0, {"count": 8.0}, (0, 1))
    assert aggregate.votes.tolist() == [1, 1, 1]
    assert aggregate.bytes_up == 201


@pytest.mark.parametrize("size", [5, 2**17, 2**18 + 3])
def test_an_answer_added_to_a_sum_is_the_sum_of_both(size):
    gen = torch.Generator().manual_seed(0)
    drawn = [torch.randn(size, generator=gen) for _ in range(3)]
    each = [Answer(v, 1.0 + p, {"count": p}, v > 0) for p, v in enumerate(drawn)]
    expected, aggregate = summed(as_sum(a, p, 10) for p, a in enumerate(each)), Aggregate()
    for p, a in enumerate(each):
        aggregate = as_sum(a, p, 10, aggregate)
    assert torch.equal(aggregate.total, expected.total)
    assert torch.equal(aggregate.votes, expected.votes)
    assert torch.equal(drawn[0], torch.randn(size, generator=torch.Generator().manual_seed(0)))
    rest = {"total": None, "votes": None}
    assert dataclasses.replace(aggregate, **rest) == dataclasses.replace(expected, **rest)


def test_answers_are_added_in_the_order_given():
    big, small = 1e17, [3.0] * 10  # 1e17 + 3 rounds to 1e17, 1e17 + 30 does not
    pieces = [Aggregate(torch.tensor([v], dtype=torch.float64)) for v in [big, *small]]
    turned = [Aggregate(torch.tensor([v], dtype=torch.float64)) for v in [*small, big]]
    first, last = summed(pieces).total, summed(turned).total
    # Not `sum`, which from Python 3.12 on carries along what is rounded off.
    assert (first.item(), last.item()) == (reduce(add, [big, *small]), reduce(add, [*small, big]))
    assert first.item() != last.item()


def test_failures_and_silence_add_nothing_but_themselves():
    failure = Failure(1, "tune", "conv", "NaN or infinite")
    lost = Aggregate(failures=(failure,), totals={"loss": 1.5, "count": 2}, bytes_up=7)
    aggregate = summed([lost, as_sum(answer([1.0], 1.0), 2, 5), Aggregate()])
    assert aggregate.total.tolist() == [1.0]
    assert aggregate.totals == {"loss": 1.5, "count": 3.0}, "by name"
    assert (aggregate.answered, aggregate.failures, aggregate.bytes_up) == ((2,), (failure,), 12)
    assert summed([]) == Aggregate()


def test_a_question_comes_back_as_it_went():
    given = {"head": torch.tensor([9.0, 2.0, 9.0, 9.0]), "basis": torch.randn(3, 2)}
    more = {"ask": 1, "names": ("head",), "dense": True, "sparsity": 0.25, "lr": 0.125}
    asked = question(kind="score", score="taylor", given=given, part="test", **more)
    seen = decode_question(encode_question(asked, "fp32"), LAYOUT)
    for field in dataclasses.fields(Question):
        if field.name not in {"weights", "masks", "given", "known"}:
            assert getattr(seen, field.name) == getattr(asked, field.name)
    assert list(seen.given) == ["head", "basis"]
    assert seen.given["head"].tolist() == [0.0, 2.0, 0.0, 0.0], "what was removed does not travel"
    assert torch.equal(seen.given["basis"], asked.given["basis"])
    assert list(seen.weights) == list(SHAPES)
    assert all(torch.equal(seen.weights[n], asked.weights[n]) for n in SHAPES)
    assert all(torch.equal(seen.masks[n], MASKS[n]) for n in MASKS)


def test_every_field_of_a_question_has_a_row_or_says_who_has_what():
    assert FIELDS.keys() | {"known", "taught"} == {f.name for f in dataclasses.fields(Question)}


@pytest.mark.parametrize("having", [{}, {3}, {3, 4}])
def test_a_host_is_sent_what_it_lacks_and_nothing_of_others(having):
    asked = question(teacher=b"t" * 40, distil=0.5, counted={3: 1, 4: 2, 7: 5})
    asked = dataclasses.replace(asked, known=frozenset(having), taught=frozenset({4}))
    sent = broadcast(asked, "bf16")
    lean, whole = sent.packet([3, 4], lean=True), sent.packet([3, 4])
    assert ("bits" in lean.buffers) == (having != {3, 4})
    assert "teacher" in lean.buffers, "3 lacks it"
    assert "teacher" not in sent.packet([4], lean=True).buffers
    seen = decode_question(whole, LAYOUT)
    assert (seen.counted, seen.teacher) == ({3: 1, 4: 2}, asked.teacher)
    alone = [sent.packet([p], lean=True).size() for p in (3, 4, 7)]
    assert sent.size([3, 4, 7]) == sum(alone)


def test_a_question_of_another_mask_or_with_too_few_values_is_refused():
    packet = encode_question(question(), "fp32")
    other = {n: torch.roll(m, 1) for n, m in MASKS.items()}
    with pytest.raises(ValueError, match="mask is not the one"):
        decode_question(other_buffers(packet, bits=encode_mask(other)), LAYOUT)
    with pytest.raises(ValueError, match="expected 6 values, got 5"):
        decode_question(other_buffers(packet, values=bytes(packet["values"])[:-4]), LAYOUT)


@pytest.mark.parametrize("hosts", [[255], [256], [200, 100], [1, 255], [300, 300]])
def test_votes_are_counted_and_sent_in_the_smallest_type_that_holds_them(hosts):
    pieces, partitions = [], iter(range(sum(hosts)))
    for many in hosts:
        piece = Aggregate()
        for who in islice(partitions, many):
            piece = as_sum(answer([], 1.0, [True, False]), who, 1, piece)
        pieces.append(piece)
    whole = summed(pieces)
    there = folded_of(sum_packet(whole), list(whole.answered)).votes
    assert whole.votes.tolist() == there.tolist() == [sum(hosts), 0]
    small = torch.uint8 if sum(hosts) < 256 else torch.int16
    assert whole.votes.dtype == there.dtype == small
    assert agreement_of(whole) == 1.0


@pytest.mark.parametrize("votes", [None, [True, False, True, True], [False] * 4])
def test_an_answer_comes_back_as_it_went(votes):
    given = answer([0.1, -2.0, 3e-39, 4.0], 17.0, votes)
    asked = question(kind="score")
    seen = decode_answer(encode_answer(given, asked, "bf16"), asked, 4)
    assert torch.equal(seen.values, given.values), "statistics travel as fp32 on any wire"
    assert (seen.weight, seen.totals) == (given.weight, given.totals)
    assert votes == (None if seen.votes is None else seen.votes.tolist())


ODD = [float("nan"), -0.0, 0.1, float("-inf"), 1e-42]


@pytest.mark.parametrize("values", [ODD, []], ids=["odd", "none"])
@pytest.mark.parametrize(("weight", "wire"), [(3, "fp32"), (0.1, "fp32"), (3, "bf16")])
def test_what_a_packet_says_in_its_own_process_is_what_is_read_of_it(values, weight, wire):
    given = Answer(torch.tensor(values), weight, {"loss": 0.1, "count": 7})
    packet = encode_answer(given, question(), wire)
    travelled = Packet(packet.fields, packet.buffers)
    assert other_buffers(packet, values=b"").said is None
    if wire != "fp32":
        assert packet.said is None
        return
    said, read = packet.said, decode_answer(travelled, question(), 0)
    assert as_bytes(said.values) == as_bytes(read.values)
    assert [(type(a.weight), a.weight, a.totals) for a in (said, read)] == [
        (float, weight, {"loss": 0.1, "count": 7.0})
    ] * 2


@pytest.mark.parametrize(
    "changes", [{"own": True}, {"fixed": True}, {"votes": torch.ones(4) > 0}], ids=str
)
def test_a_packet_that_coding_changes_says_nothing_beforehand(changes):
    votes = changes.pop("votes", torch.ones(4) > 0 if "own" in changes else None)
    given = Answer(torch.zeros(6), 1.0, {}, votes)
    assert encode_answer(given, question(), "fp32", **changes).said is None


@pytest.mark.parametrize(("wire", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_change_is_cast_to_the_type_of_the_wire(wire, dtype):
    values: Tensor = torch.randn(9)
    packet = encode_answer(Answer(values, 1.0, {}), question(), wire)
    assert len(packet["values"]) == 18
    assert torch.equal(decode_answer(packet, question(), 9).values, values.to(dtype).float())


def test_votes_of_another_length_are_refused():
    asked = question(kind="score")
    packet = encode_answer(answer([1.0] * 3, 1.0, [True] * 3), asked, "fp32")
    with pytest.raises(ValueError, match="expected 4 flags"):
        decode_answer(packet, asked, 4)


# Kept values by sorted name: two of the bias, three of the convolution, one of the head.
OWN = [
    ([True, True, True, True], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    ([True, False, True, False], [1.0, 2.0, 3.0, 0.0, 5.0, 0.0]),
    ([False] * 4, [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]),
]


@pytest.mark.parametrize(("wire", "width"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
@pytest.mark.parametrize(("votes", "expected"), OWN)
def test_under_a_mask_of_its_own_a_client_sends_what_it_keeps(votes, expected, wire, width):
    given = Answer(torch.tensor(expected), 3.0, {"count": 3.0}, torch.tensor(votes))
    packet = encode_answer(given, question(), wire, own=True)
    assert len(packet["values"]) == width * (2 + sum(votes))
    seen = decode_answer(packet, question(), 4, own=True)
    assert seen.values.tolist() == expected
    assert seen.votes.tolist() == votes
    assert (seen.weight, seen.totals) == (given.weight, given.totals)


def test_a_change_outside_of_the_own_mask_does_not_travel():
    values = torch.tensor([1.0, 2.0, 3.0, 99.0, 5.0, 99.0])
    given = Answer(values, 1.0, {}, torch.tensor([True, False, True, False]))
    packet = encode_answer(given, question(), "fp32", own=True)
    seen = decode_answer(packet, question(), 4, own=True)
    assert seen.values.tolist() == [1.0, 2.0, 3.0, 0.0, 5.0, 0.0]


def test_values_that_do_not_fit_the_own_mask_are_refused():
    packet = encode_answer(answer([1.0] * 6, 1.0, [True] * 4), question(), "fp32", own=True)
    with pytest.raises(Refused, match="own mask") as bare:
        decode_answer(other_buffers(packet, bits=b""), question(), 4, own=True)
    assert bare.value.field == "votes"
    short = other_buffers(packet, values=bytes(packet["values"])[:-4])
    with pytest.raises(Refused, match="5 values on 6 coordinates") as fewer:
        decode_answer(short, question(), 4, own=True)
    assert fewer.value.field == "values"


@pytest.mark.parametrize("kind", ["score", "tune"])
@pytest.mark.parametrize(("wire", "width"), [("fp32", 4), ("fp16", 2), ("log8", 1)])
def test_statistics_travel_in_their_own_type(kind, wire, width):
    """Those of a scoring answer are its values, those of a tuning answer come beside them."""
    sums = torch.tensor([0.5, -1024.0, 0.0, 2.0**20])
    tuned = kind == "tune"
    given = Answer(torch.ones(6) if tuned else sums, 1.0, {}, None, sums if tuned else None)
    packet = encode_answer(given, question(kind=kind), "bf16", wire)
    assert (len(packet["values"]), len(packet["more"])) == (
        (12, 4 * width) if tuned else (4 * width, 0)
    )
    assert packet.size() == len(packet.head) + len(packet["values"]) + len(packet["more"])
    seen = decode_answer(packet, question(kind=kind), 4)
    back = seen.statistics if tuned else seen.values
    assert back.tolist() == pytest.approx(sums.tolist(), rel=0.13)
    assert (seen.statistics is None) == (not tuned)


def test_one_by_one_and_held_are_kept_beside_the_sum():
    """And so are statistics, which nothing weighs."""
    answers = [answer([1.0, 2.0], 2.0, [True, False]), answer([5.0, 7.0], 6.0, [True, True])]
    answers = [dataclasses.replace(a, statistics=a.values + 0.5) for a in answers]
    aggregate = Aggregate()
    for p, a in enumerate(answers):
        aggregate = as_sum(a, p, 1, aggregate, singly=True, held=True)
    assert aggregate.singles.tolist() == [[1.0, 2.0], [5.0, 7.0]]
    assert aggregate.held.tolist() == [8.0, 6.0]
    hosts = [as_sum(a, p, 1, singly=True, held=True) for p, a in enumerate(answers)]
    both = summed(hosts)
    assert torch.equal(both.singles, aggregate.singles)
    assert torch.equal(both.held, aggregate.held)
    assert torch.equal(both.total, aggregate.total)
    assert both.statistics.tolist() == aggregate.statistics.tolist() == [7.0, 10.0]
    assert both.statistics.dtype == torch.float64
