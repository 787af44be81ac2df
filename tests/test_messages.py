import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from fedprune.compression.masks import encode_mask
from fedprune.messages import (
    Answer,
    Failure,
    Folded,
    Question,
    Refused,
    as_sum,
    check,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
    expected_values,
    summed,
)
from fedprune.pruning.layout import Layout

NAN, INF = float("nan"), float("inf")
SHAPES = {"conv": (2, 3), "bias": (2,), "head": (4,)}
LAYOUT = Layout({n: torch.Size(s) for n, s in SHAPES.items()}, ("conv", "head"), ("bias",), {})
MASKS = {
    "conv": torch.tensor([[True, False, True], [False, False, True]]),
    "head": torch.tensor([False, True, False, False]),
}
COUNTS = {
    "score": {"count": 3.0},
    "tune": {"loss": 2.0, "count": 3.0},
    "evaluate": {"loss": 2.0, "correct": 1, "count": 3},
}


def question(**changes: Any) -> Question:
    weights = {n: torch.randn(s) for n, s in SHAPES.items()}
    weights = {n: w * MASKS[n] if n in MASKS else w for n, w in weights.items()}
    return Question(**{"kind": "tune", "round": 3, "weights": weights, "masks": MASKS} | changes)


def answer(values: list[float], weight: float, votes: list[bool] | None = None) -> Answer:
    flags = None if votes is None else torch.tensor(votes)
    return Answer(torch.tensor(values), weight, {"count": weight}, flags)


def test_two_clients_and_three_numbers():
    answers = [
        answer([1.0, 2.0, 3.0], 2.0, [True] * 3),
        answer([10.0, 0.5, -3.0], 6.0, [False] * 3),
    ]
    folded = summed(as_sum(a, p, 100 + p) for p, a in enumerate(answers))
    assert folded.total is not None
    assert folded.total.tolist() == [62.0, 7.0, -12.0]
    assert (folded.weight, folded.totals, folded.answered) == (8.0, {"count": 8.0}, (0, 1))
    assert folded.votes is not None
    assert folded.votes.tolist() == [1, 1, 1]
    assert folded.bytes_up == 201


def test_a_sum_is_float64_whatever_came():
    folded = as_sum(Answer(torch.tensor([0.1]), 3.0, {}), 0, 1)
    assert folded.total is not None
    assert folded.total.dtype == torch.float64
    assert folded.total.item() == float(torch.tensor(0.1)) * 3.0


@pytest.mark.parametrize("size", [5, 2**17, 2**18 + 3])
def test_an_answer_added_to_a_sum_is_the_sum_of_both(size: int):
    gen = torch.Generator().manual_seed(0)
    drawn = [torch.randn(size, generator=gen) for _ in range(3)]
    each = [Answer(v, 1.0 + p, {"count": p}, v > 0) for p, v in enumerate(drawn)]
    expected, folded = summed(as_sum(a, p, 10) for p, a in enumerate(each)), Folded()
    for p, a in enumerate(each):
        folded = as_sum(a, p, 10, folded)
    assert torch.equal(folded.total, expected.total)
    assert torch.equal(folded.votes, expected.votes)
    assert torch.equal(drawn[0], torch.randn(size, generator=torch.Generator().manual_seed(0)))
    rest = {"total": None, "votes": None}
    assert dataclasses.replace(folded, **rest) == dataclasses.replace(expected, **rest)


def test_answers_are_added_in_the_order_given():
    big, small = 1e17, [3.0] * 10  # 1e17 + 3 rounds to 1e17, 1e17 + 30 does not
    pieces = [Folded(torch.tensor([v], dtype=torch.float64)) for v in [big, *small]]
    turned = [Folded(torch.tensor([v], dtype=torch.float64)) for v in [*small, big]]
    first, last = summed(pieces).total, summed(turned).total
    assert first is not None
    assert last is not None
    assert (first.item(), last.item()) == (sum([big, *small]), sum([*small, big]))
    assert first.item() != last.item()


def test_failures_and_silence_add_nothing_but_themselves():
    failure = Failure(1, "tune", "conv", "NaN or infinite")
    pieces = [Folded(failures=(failure,), bytes_up=7), as_sum(answer([1.0], 1.0), 2, 5), Folded()]
    folded = summed(pieces)
    assert folded.total is not None
    assert folded.total.tolist() == [1.0]
    assert (folded.answered, folded.failures, folded.bytes_up) == ((2,), (failure,), 12)
    assert summed([]) == Folded()


def test_totals_add_up_by_name():
    pieces = [Folded(totals={"loss": 1.5, "count": 2}), Folded(totals={"count": 3, "correct": 1})]
    assert summed(pieces).totals == {"loss": 1.5, "count": 5, "correct": 1}


@pytest.mark.parametrize(("kind", "size"), [("score", 4), ("tune", 6), ("evaluate", 0)])
def test_how_many_values_an_answer_carries(kind: str, size: int):
    assert expected_values(kind, MASKS, LAYOUT) == size
    check(torch.zeros(size), 1.0, COUNTS[kind], kind, MASKS, LAYOUT)


@pytest.mark.parametrize(("kind", "size"), [("score", 4), ("tune", 6), ("evaluate", 0)])
@pytest.mark.parametrize("off", [-1, 1, 100])
def test_another_number_of_values_is_refused(kind: str, size: int, off: int):
    values = torch.zeros(max(0, size + off)) if size else torch.zeros(abs(off))
    with pytest.raises(
        Refused, match=f"wrong shape: {values.numel()} values, expected {size}"
    ) as e:
        check(values, 1.0, COUNTS[kind], kind, MASKS, LAYOUT)
    assert e.value.field == "values"


# What travels, by sorted name: the question's or answer's flat position, and whose tensor it is.
SPOTS = [
    ("tune", 0, "bias"),
    ("tune", 1, "bias"),
    ("tune", 2, "conv"),
    ("tune", 4, "conv"),
    ("tune", 5, "head"),
    ("score", 0, "conv"),
    ("score", 2, "conv"),
    ("score", 3, "head"),
]


@pytest.mark.parametrize(("kind", "spot", "name"), SPOTS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_tensor_with_the_nan_is_named(kind: str, spot: int, name: str, bad: float):
    values = torch.zeros(expected_values(kind, MASKS, LAYOUT))
    values[spot] = bad
    with pytest.raises(Refused, match="NaN or infinite") as e:
        check(values, 1.0, COUNTS[kind], kind, MASKS, LAYOUT)
    assert e.value.field == name


@pytest.mark.parametrize("weight", [0.0, -1.0, NAN, INF])
def test_a_weight_that_is_no_positive_number_is_refused(weight: float):
    with pytest.raises(Refused, match=f"{weight} is not a positive number") as e:
        check(torch.zeros(6), weight, COUNTS["tune"], "tune", MASKS, LAYOUT)
    assert e.value.field == "weight"


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_total_that_is_not_finite_is_refused_by_its_name(bad: float):
    totals = {"loss": bad, "correct": 1.0, "count": 3.0}
    with pytest.raises(Refused, match="is not finite") as e:
        check(torch.zeros(0), 1.0, totals, "evaluate", MASKS, LAYOUT)
    assert e.value.field == "loss"


@pytest.mark.parametrize(
    ("kind", "totals"),
    [
        ("tune", {}),
        ("tune", {"count": 3.0}),
        ("evaluate", {"loss": 1.0, "count": 3.0}),
        ("score", {"count": 3.0, "smuggled": 1.0}),
        ("score", {"count": -1.0}),
        ("evaluate", {"loss": 1.0, "correct": -1.0, "count": 3.0}),
    ],
)
def test_totals_that_the_server_could_not_use_are_refused(kind: str, totals: dict[str, float]):
    values = torch.zeros(expected_values(kind, MASKS, LAYOUT))
    with pytest.raises(Refused):
        check(values, 1.0, totals, kind, MASKS, LAYOUT)


def test_a_question_comes_back_as_it_went():
    asked = question(kind="score", score="taylor", sparsity=0.25, lr=0.125, part="test")
    seen = decode_question(encode_question(asked, "fp32"), LAYOUT)
    for field in dataclasses.fields(Question):
        if field.name not in {"weights", "masks", "known"}:
            assert getattr(seen, field.name) == getattr(asked, field.name)
    assert list(seen.weights) == list(SHAPES)
    assert all(torch.equal(seen.weights[n], asked.weights[n]) for n in SHAPES)
    assert all(torch.equal(seen.masks[n], MASKS[n]) for n in MASKS)


@pytest.mark.parametrize(("wire", "width"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_a_question_carries_kept_values_only(wire: str, width: int):
    assert len(encode_question(question(), wire).values) == 6 * width


def test_a_question_under_another_mask_than_it_names_is_refused():
    packet = encode_question(question(), "fp32")
    other = {n: torch.roll(m, 1) for n, m in MASKS.items()}
    with pytest.raises(ValueError, match="mask is not the one"):
        decode_question(dataclasses.replace(packet, bits=encode_mask(other)), LAYOUT)


def test_a_question_with_too_few_values_is_refused():
    packet = encode_question(question(), "fp32")
    with pytest.raises(ValueError, match="expected 6 values, got 5"):
        decode_question(dataclasses.replace(packet, values=bytes(packet.values)[:-4]), LAYOUT)


@pytest.mark.parametrize("votes", [None, [True, False, True, True], [False] * 4])
def test_an_answer_comes_back_as_it_went(votes: list[bool] | None):
    given = answer([0.1, -2.0, 3e-39, 4.0], 17.0, votes)
    seen = decode_answer(encode_answer(given, "score", "bf16"), 4)
    assert torch.equal(seen.values, given.values), "statistics travel as fp32 on any wire"
    assert (seen.weight, seen.totals) == (given.weight, given.totals)
    assert votes == (None if seen.votes is None else seen.votes.tolist())


@pytest.mark.parametrize(("wire", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_change_is_cast_to_the_type_of_the_wire(wire: str, dtype: torch.dtype):
    values: Tensor = torch.randn(9)
    packet = encode_answer(Answer(values, 1.0, {}), "tune", wire)
    assert len(packet.values) == 18
    assert torch.equal(decode_answer(packet, 9).values, values.to(dtype).float())


def test_votes_of_another_length_are_refused():
    packet = encode_answer(answer([1.0] * 3, 1.0, [True] * 3), "score", "fp32")
    with pytest.raises(ValueError, match="expected 4 flags"):
        decode_answer(packet, 4)
