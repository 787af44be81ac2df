"""An answer as one vector, and sums of vectors as sums of answers."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune import RunConfig
from fedprune.client.measurement import LOST
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.form import Form
from fedprune.protocol.messages import Answer
from fedprune.protocol.running_sum import as_sum
from fedprune.secagg.vectors import folded_from, length, pieces_of, vector_of
from tests.runs import tiny

SHAPES = {"b": torch.Size([2]), "a": torch.Size([2, 3])}
MASKS = {"a": torch.tensor([[True, False, True], [True, True, False]])}
FORM = Form(SHAPES, MASKS, frozenset({"loss", "count"}), {"a": SHAPES["a"]}, voters=4)


def sealed(**changes: Any) -> RunConfig:
    return tiny(secure="secagg", **changes)


def answers(count: int, seed: int = 0) -> list[Answer]:
    gen = torch.Generator().manual_seed(seed)
    return [
        Answer(
            torch.randn(6, generator=gen) * 10.0 ** (2 - i),
            float(i + 1),
            {"loss": float(torch.randn(1, generator=gen)), "count": float(7 * i)},
            torch.rand(4, generator=gen) < 0.5,
            torch.randn(4, generator=gen).abs() * 1e-8,
        )
        for i in range(count)
    ]


def plain(given: list[Answer]) -> Aggregate:
    total = Aggregate()
    for i, answer in enumerate(given):
        total = as_sum(answer, i, 0, total)
    return total


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_sum_of_vectors_is_the_sum_of_answers(bits, count):
    config = sealed(secure_bits=bits)
    pieces = pieces_of("tune", FORM, config, count)
    given = answers(count)
    vectors = [vector_of(answer, pieces, bits) for answer in given]
    assert {len(v) for v in vectors} == {length(pieces)} == {6 + 1 + 2 + 4 + 4}
    total = np.add.reduce(vectors, dtype=vectors[0].dtype)
    found, right = folded_from(total, pieces, range(count), bits), plain(given)
    steps = {(piece.field, piece.name): piece.scale.step for piece in pieces}
    worst = count / 2 * steps["values", "a"] + 1e-12
    assert float((found.total - right.total).abs().max()) <= worst
    assert found.votes.equal(right.votes)
    assert found.votes.dtype == torch.uint8
    off = float((found.statistics - right.statistics).abs().max())
    assert off <= count / 2 * steps["statistics", "a"] + 1e-20
    assert found.weight == right.weight
    assert found.totals["count"] == right.totals["count"]
    assert abs(found.totals["loss"] - right.totals["loss"]) <= count / 2 * steps["totals", "loss"]
    assert found.answered == right.answered
    assert found.singles is None


def test_values_lie_in_the_order_in_which_they_travel():
    """The scale of a tensor is that of its own values, whatever the order of the shapes."""
    config = sealed(ranges={"changes/a": 1.0, "changes/b": 1000.0})
    pieces = pieces_of("tune", FORM, config, 3)
    values = torch.tensor([0.5, -0.5, 1.0, -1.0, 900.0, -900.0])
    answer = Answer(values, 1.0, {"loss": 0.0, "count": 1.0}, torch.ones(4) > 0, torch.zeros(4))
    found = folded_from(vector_of(answer, pieces, 64), pieces, [0], 64)
    assert FORM.named(found.total)["b"].tolist() == [900.0, -900.0]
    with pytest.raises(Refused) as refused:
        vector_of(replace(answer, values=values.flip(0)), pieces, 64)
    assert refused.value.field == "a"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("b", {"values": torch.tensor([0.0, 0, 0, 0, 0, math.nan])}),
        ("a", {"values": torch.tensor([math.inf, 0, 0, 0, 0, 0])}),
        ("a", {"values": torch.tensor([1.1e6, 0, 0, 0, 0, 0])}),
        ("weight", {"weight": 1e13, "values": torch.zeros(6)}),
        ("loss", {"totals": {"loss": 1e10, "count": 1.0}}),
        ("count", {"totals": {"loss": 1.0, "count": math.inf}}),
        ("votes", {"votes": None}),
        ("a", {"statistics": torch.tensor([0.0, 0, 0, -math.inf])}),
    ],
)
def test_what_would_spoil_the_sum_is_refused_by_name(field, changes):
    pieces = pieces_of("tune", FORM, sealed(), 5)
    (right,) = answers(1)
    vector_of(right, pieces, 64)
    with pytest.raises(Refused) as refused:
        vector_of(replace(right, **changes), pieces, 64)
    assert refused.value.field == field


def test_a_range_holds_for_what_a_client_adds_and_a_sum_never_wraps():
    """Every client at its limit: the sum is what it should be, in both widths."""
    form = Form({"a": torch.Size([1])})
    for bits in (32, 64):
        config = sealed(ranges={"changes/*": 8.0}, secure_bits=bits)
        pieces = pieces_of("tune", form, config, 77)
        vector = vector_of(Answer(torch.tensor([4.0]), 2.0, {}), pieces, bits)
        total = np.add.reduce([vector] * 77, dtype=vector.dtype)
        found = folded_from(total, pieces, range(77), bits)
        assert found.total.tolist() == pytest.approx([8.0 * 77], rel=1e-6)
        assert found.weight == 154.0
        with pytest.raises(Refused):
            vector_of(Answer(torch.tensor([4.1]), 2.0, {}), pieces, bits)


def test_of_several_ranges_the_last_that_matches_counts():
    config = sealed(ranges={"changes/*": 8.0, "*/a": 2.0})
    scales = {p.name: p.scale.largest for p in pieces_of("tune", FORM, config, 3)}
    assert scales["a"] == 2.0
    assert scales["b"] == 8.0
    assert scales["loss"] == 1e9


def test_scales_follow_from_the_configuration_alone():
    """A larger cohort has larger steps; nothing else changes them."""
    few, many = (pieces_of("score", FORM, sealed(), n) for n in (3, 300))
    assert all(f.scale.step <= m.scale.step for f, m in zip(few, many, strict=True))
    step = {p.name: p.scale.step for p in pieces_of("score", FORM, sealed(), 100)}["a"]
    assert step < 1e-10


def test_a_lost_candidate_has_the_largest_loss():
    form = Form({}, {}, frozenset({"loss_0", "loss_1", "count"}))
    pieces = pieces_of("compare", form, sealed(), 3)
    answer = Answer(torch.empty(0), 1.0, {"loss_0": 2.5, "loss_1": LOST, "count": 4.0})
    found = folded_from(vector_of(answer, pieces, 64), pieces, [1], 64)
    assert found.totals["loss_0"] == 2.5
    assert found.totals["loss_1"] == 1e9
    assert found.total.numel() == 0


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=6, max_size=6))
def test_any_values_are_added_or_refused(values):
    pieces = pieces_of("tune", Form({"a": torch.Size([6])}), sealed(), 10)
    answer = Answer(torch.tensor(values), 1.0, {})
    if any(not abs(v) <= 1e6 for v in values):
        with pytest.raises(Refused):
            vector_of(answer, pieces, 64)
        return
    found = folded_from(vector_of(answer, pieces, 64), pieces, [0], 64)
    assert np.allclose(found.total.numpy(), values, rtol=0, atol=pieces[0].scale.step / 2 + 1e-9)


@pytest.mark.parametrize("clients", [3, 100])
def test_scores_of_scale_1e8th_choose_the_same_mask(clients):
    """With the ranges that are there by default: 999 of 1,000 of the largest tenth, at least."""
    form, gen = Form({"a": torch.Size([20000])}), torch.Generator().manual_seed(7)
    pieces = pieces_of("score", form, sealed(), clients)
    given = torch.randn(clients, 20000, generator=gen).mul(2.0).exp() * 1e-8
    total = sum(vector_of(Answer(scores, 1.0, {}), pieces, 64) for scores in given)
    found = folded_from(total, pieces, range(clients), 64).total
    best = [set(t.topk(2000).indices.tolist()) for t in (found, given.double().sum(0))]
    assert len(best[0] & best[1]) >= 0.999 * 2000
