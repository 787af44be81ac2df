from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedprune import select
from fedprune.learning import averaging
from fedprune.learning.averaging import (
    AVERAGES,
    averaged,
    change,
    flat_change,
    from_moments,
    to_moments,
)
from fedprune.learning.candidates import Candidate, blended, way_back
from fedprune.learning.mask_rules import MASKS, decided
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Answer
from fedprune.protocol.running_sum import as_sum, summed
from fedprune.structure.layout import Layout, layout_of
from fedprune.tasks.networks import ConvNet
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Tensors, copied, digest, gathered, laid_out
from tests.runs import same

PLAIN = Layout({"w": torch.Size([3])}, ("w",), (), {})
ALL = {"w": torch.ones(3, dtype=torch.bool)}


SENT_TO_TWO = {"w": torch.tensor([1.0, -2.0, 0.5])}
TWO = [{"w": torch.tensor([2.0, -2.0, 0.0])}, {"w": torch.tensor([0.0, 6.0, 0.25])}]


def mean(
    sent: Tensors, tuned: list[Tensors], weights: list[float], masks: Tensors = ALL, lr: float = 1.0
) -> list[float]:
    """What the server makes of clients' changes times weights, added up."""
    pairs = zip(tuned, weights, strict=True)
    answers = [Answer(gathered(change(t, sent, PLAIN), masks), w, {}) for t, w in pairs]
    total = summed(as_sum(a, p, 0) for p, a in enumerate(answers))
    return averaged(sent, total.total, total.weight, masks, PLAIN, lr)["w"].tolist()


@pytest.mark.parametrize("lr", [1.0, 0.5, 2.0])
def test_two_clients_and_three_numbers(lr):
    old = SENT_TO_TWO["w"].numpy()
    plain = np.average([t["w"].numpy() for t in TWO], axis=0, weights=[3, 1])
    assert mean(SENT_TO_TWO, TWO, [3.0, 1.0], lr=lr) == (old + lr * (plain - old)).tolist()


def test_what_was_removed_stays_exactly_zero_and_no_change_leaves_every_bit():
    masks = {"w": torch.tensor([True, False, True])}
    astray = [{"w": torch.tensor([2.0, 5.0, 3.0])}, {"w": torch.tensor([4.0, -1.0, 5.0])}]
    for removed in (0.0, 7.0):
        sent = {"w": torch.tensor([1.0, removed, 2.0])}
        assert mean(sent, astray, [1.0, 1.0], masks) == [3.0, 0.0, 4.0]
    sent = {"w": torch.tensor([0.1, 1e-38, 3e7])}
    assert mean(sent, [sent, sent], [3.0, 7.0]) == sent["w"].tolist()


def test_sums_are_taken_in_float64():
    tuned = [{"w": torch.full((3,), v)} for v in (2.0**12, 1.0, -(2.0**12))]
    weights = [2.0**13, 1.0, 2.0**13]  # in float32 the middle client would be lost
    assert mean({"w": torch.zeros(3)}, tuned, weights) == [np.float32(1 / (2.0**14 + 1))] * 3


class Normed(nn.Module):
    def __init__(self, tracked: bool = True) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, track_running_stats=tracked)


def test_running_statistics_merge_to_those_of_the_pooled_mixture():
    model = Normed()
    layout = layout_of(model)
    gen = np.random.default_rng(5)
    parts = [gen.normal(m, s, size=(n, 4)) for m, s, n in [(0, 1, 20), (4, 0.5, 70), (-3, 2, 11)]]
    sent = copied(state_of(model))
    total = Aggregate()
    for p, rows in enumerate(parts):
        tuned = {**sent, "norm.running_mean": torch.tensor(rows.mean(0)).float()}
        tuned["norm.running_var"] = torch.tensor(rows.var(0)).float()
        answer = Answer(gathered(change(tuned, sent, layout), {}), float(len(rows)), {})
        total = summed([total, as_sum(answer, p, 0)])
    after = averaged(sent, total.total, total.weight, {}, layout, 1.0)
    pooled = np.concatenate(parts)
    np.testing.assert_allclose(after["norm.running_mean"], pooled.mean(0), rtol=1e-5)
    np.testing.assert_allclose(after["norm.running_var"], pooled.var(0), rtol=1e-5)
    within = np.average([rows.var(0) for rows in parts], axis=0, weights=[20, 70, 11])
    assert (pooled.var(0) - within > 1).all(), "a mean of variances would be far off here"


def test_a_small_variance_beside_a_large_mean_survives():
    layout, sent = layout_of(Normed()), copied(state_of(Normed()))
    sent |= {"norm.running_mean": torch.full((4,), 100.0)}
    sent |= {"norm.running_var": torch.full((4,), 0.01)}
    tuned = {**sent, "norm.running_var": torch.full((4,), 0.03)}
    answers = [Answer(gathered(change(t, sent, layout), {}), 1.0, {}) for t in (sent, tuned)]
    assert answers[1].values.dtype == torch.float32
    total = summed(as_sum(a, p, 0) for p, a in enumerate(answers)).total
    before = digest({"total": total, **sent})
    after = averaged(sent, total, 2.0, {}, layout, 1.0)
    assert digest({"total": total, **sent}) == before, "the arguments are left alone"
    assert after["norm.running_var"].tolist() == pytest.approx([0.02] * 4, rel=1e-4)
    assert torch.equal(after["norm.running_mean"], sent["norm.running_mean"])


@pytest.mark.parametrize(("before", "least"), [(False, 0.0), (True, 1.0)])
def test_a_variance_that_rounding_made_negative_is_zero_or_stays_as_it_was(before, least):
    layout, start = layout_of(Normed()), copied(state_of(Normed()))
    tensors = {**start, "norm.running_mean": torch.full((4,), 3.0)}
    tensors["norm.running_var"] = torch.tensor([8.0, 9.0, 9.5, 13.0])
    given = [start] if before else []
    found = from_moments(tensors, layout, *given)["norm.running_var"].tolist()
    assert found == [least, 0.0, 0.5, 4.0]


def test_moments_go_there_and_back():
    layout = layout_of(Normed())
    tensors = {n: torch.rand_like(t.double()) for n, t in state_of(Normed()).items()}
    back = from_moments(to_moments(tensors, layout), layout)
    assert all(torch.allclose(back[n], tensors[n], atol=1e-12) for n in tensors)
    moments = to_moments(tensors, layout)["norm.running_var"]
    expected = tensors["norm.running_var"] + tensors["norm.running_mean"].square()
    assert torch.equal(moments, expected)


def test_a_norm_that_tracks_nothing_is_averaged_like_anything_else():
    assert layout_of(Normed(tracked=False)).variances == {}
    assert layout_of(Normed()).variances == {"norm.running_var": "norm.running_mean"}
    alone = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    assert layout_of(alone).variances == {"0.running_var": "0.running_mean"}


def test_integer_buffers_do_not_travel_and_stay_as_they_are():
    model = Normed()
    model.norm.num_batches_tracked.fill_(41)
    layout, sent = layout_of(model), copied(state_of(model))
    assert "norm.num_batches_tracked" not in layout.shapes
    total = gathered(sent, {}).double()
    load_into(model, averaged(sent, total, 1.0, {}, layout, 1.0))
    assert model.norm.num_batches_tracked.item() == 41


def test_tied_weights_are_averaged_once_and_stay_tied():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.Linear(3, 4, bias=False))
    model[2].weight = model[0].weight
    layout, sent = layout_of(model), copied(state_of(model))
    assert list(sent) == ["0.weight", "1.weight", "1.bias"]
    one: Tensor = torch.ones(sum(t.numel() for t in sent.values()), dtype=torch.float64)
    after = averaged(sent, one * 5.0, 5.0, {}, layout, 1.0)
    load_into(model, after)
    assert model[2].weight is model[0].weight
    assert torch.equal(model[2].weight, sent["0.weight"] + 1.0)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("whole", [True, False])
def test_however_few_values_are_averaged_at_a_time_the_bits_are_the_same(
    monkeypatch: pytest.MonkeyPatch, at_once: int, whole: bool
):
    gen = torch.Generator().manual_seed(3)
    shapes = {"a": torch.Size([5, 4]), "b": torch.Size([13]), "c": torch.Size([])}
    layout = Layout(shapes, ("a",), ("b", "c"), {})
    sent = {n: torch.randn(s, generator=gen) for n, s in shapes.items()}
    masks = {"a": torch.rand(5, 4, generator=gen) < (2.0 if whole else 0.4)}
    kept = int(masks["a"].sum())
    total = torch.randn(kept + 14, generator=gen, dtype=torch.float64)
    monkeypatch.setattr(averaging, "_AT_ONCE", at_once)
    after = averaged(sent, total, 3.0, masks, layout, 0.7)
    flat, moved, there = total.numpy() / 3.0 * 0.7, np.zeros((5, 4)), masks["a"].numpy()
    moved[there] = sent["a"].numpy()[there] + flat[:kept]
    wanted = {"a": moved, "b": sent["b"].numpy() + flat[kept:-1], "c": sent["c"].numpy() + flat[-1]}
    for name, values in wanted.items():
        assert np.allclose(after[name].numpy(), values, rtol=2e-7, atol=0)
        assert after[name].dtype == torch.float32
    monkeypatch.setattr(averaging, "_AT_ONCE", 10**6)
    again = averaged(sent, total, 3.0, masks, layout, 0.7)
    assert digest(again) == digest(after)


# Three clients with 1, 2 and 5 labels, each under a mask of its own over four weights: the first
# is kept by all, the second by the first two, the third by the last, the fourth by nobody.
OWN = [[True, True, False, False], [True, True, False, False], [True, False, True, False]]
LABELS = [1.0, 2.0, 5.0]
SENT = [1.0, -2.0, 4.0, 8.0]
TUNED = [[2.0, -1.0, 0.0, 0.0], [5.0, -4.0, 0.0, 0.0], [0.0, 0.0, 10.0, 0.0]]
BY_HAND = {
    "fedavg": [(2 + 10 + 0) / 8, (-1 - 8) / 8, 50 / 8, 0.0],
    "l0-mean": [(2 + 10 + 0) / 8, (-1 - 8) / 3, 50 / 5, 0.0],
}


EVERY = {"w": torch.ones(4, dtype=torch.bool)}
SOME = {"w": torch.tensor([True, False, True, True])}
FOUR = Layout({"w": torch.Size([4])}, ("w",), (), {})


def of_owners(layout: Layout, masks: Tensors, sent: Tensors, tuned: Any, own: Any) -> Aggregate:
    """What comes of three clients under masks of their own."""
    total = Aggregate()
    for p, (flags, w, after) in enumerate(zip(own, LABELS, tuned, strict=True)):
        kept = torch.tensor(flags)
        moved = change({"w": torch.tensor(after)}, sent, layout)["w"] * kept
        given = Answer(moved[masks["w"]], w, {}, kept[masks["w"]])
        total = as_sum(given, p, 0, total, held=True)
    return total


def test_every_rule_has_an_example_by_hand():
    assert BY_HAND.keys() == AVERAGES.keys()
    assert all(rule.summary and rule.source for rule in AVERAGES.values())
    assert {rule for rule, _ in LEFT} == {n for n, rule in MASKS.items() if rule.rank}
    assert [n for n, rule in MASKS.items() if rule.rank is None] == ["global"]


@pytest.mark.parametrize("rule", BY_HAND)
@pytest.mark.parametrize(("masks", "lr"), [(EVERY, 1.0), (EVERY, 0.5), (SOME, 1.0)])
def test_clients_with_different_masks_by_hand(rule, masks, lr):
    """What was gone before stays gone; half a step is half the way to their mean."""
    sent = {"w": torch.tensor(SENT)}
    came = of_owners(FOUR, masks, sent, TUNED, OWN)
    after = averaged(sent, came.total, came.weight, masks, FOUR, lr, held=came.held, rule=rule)
    whole = [old + lr * (new - old) for old, new in zip(SENT, BY_HAND[rule], strict=True)]
    wanted = torch.tensor(whole) * masks["w"]
    assert after["w"].tolist() == pytest.approx(wanted.tolist(), rel=1e-6)


@pytest.mark.parametrize("rule", BY_HAND)
def test_where_all_kept_the_same_it_is_the_plain_average(rule):
    sent, tuned = {"w": torch.randn(3)}, [torch.randn(3).tolist() for _ in LABELS]
    came = of_owners(PLAIN, ALL, sent, tuned, [[True] * 3] * 3)
    where = (sent, came.total, came.weight, ALL, PLAIN, 1.0)
    seen = averaged(*where, held=came.held, rule=rule)["w"]
    assert torch.allclose(seen, averaged(*where)["w"], atol=1e-6)


def test_what_is_not_prunable_is_averaged_over_all():
    shapes = {n: torch.Size([2]) for n in ("b", "w")}
    layout = Layout(shapes, ("w",), ("b",), {})
    sent = {"b": torch.zeros(2), "w": torch.zeros(2)}
    masks = {"w": torch.ones(2, dtype=torch.bool)}
    total = torch.tensor([8.0, 16.0, 8.0, 6.0], dtype=torch.float64)
    held = torch.tensor([8.0, 2.0], dtype=torch.float64)
    after = averaged(sent, total, 8.0, masks, layout, 1.0, held=held, rule="l0-mean")
    assert after["b"].tolist() == [1.0, 2.0]
    assert after["w"].tolist() == [1.0, 3.0]


# The averaged weights of five, four of them alive, and the number of clients out of three that
# kept each.
ALIVE = {"w": torch.tensor([True, True, False, True, True])}
WEIGHTS = {"w": torch.tensor([9.0, -3.0, 7.0, 0.5, -5.0])}
VOTES = torch.tensor([1, 3, 2, 0])
LEFT = {
    # Nobody kept the last one, whatever its weight; of the others the largest stay.
    ("union", 3): [True, True, False, True, False],
    ("union", 2): [True, True, False, False, False],
    ("union", 1): [True, False, False, False, False],
    # What most kept stays, from 3 votes down; magnitude only breaks ties.
    ("intersection", 3): [True, True, False, True, False],
    ("intersection", 2): [False, True, False, True, False],
    ("intersection", 1): [False, True, False, False, False],
}


@pytest.mark.parametrize(("rule", "stay"), LEFT)
def test_union_and_intersection_by_hand(rule, stay):
    def choose(scores: Tensors) -> Tensors:
        return select(scores, 1 - stay / 5, alive=ALIVE, magnitude={"w": WEIGHTS["w"].abs()})

    assert decided(rule, VOTES, WEIGHTS, ALIVE, choose)["w"].tolist() == LEFT[rule, stay]
    if (rule, stay) == ("intersection", 2):  # equal votes are decided by magnitude
        found = decided(rule, torch.tensor([2, 2, 2, 2]), WEIGHTS, ALIVE, choose)["w"]
        assert found.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("lr", [0.5, 1.0, 1.5, 4.0])
def test_a_server_learning_rate_does_not_extrapolate_statistics(lr):
    """Moments up to the mean change, parameters as far as it says: so no variance is negative."""
    layout, sent = layout_of(Normed()), copied(state_of(Normed()))
    sent |= {"norm.running_mean": torch.full((4,), 2.0), "norm.running_var": torch.full((4,), 1.0)}
    tuned = {n: w + 1.0 for n, w in sent.items()}
    tuned |= {"norm.running_mean": torch.zeros(4), "norm.running_var": torch.full((4,), 0.25)}
    total = as_sum(Answer(gathered(change(tuned, sent, layout), {}), 1.0, {}), 0, 0).total
    after, reach = averaged(sent, total, 1.0, {}, layout, lr), min(lr, 1.0)
    mean, moment = 2.0 - 2.0 * reach, 5.0 + (0.25 - 5.0) * reach
    assert after["norm.running_mean"].tolist() == pytest.approx([mean] * 4)
    assert after["norm.running_var"].tolist() == pytest.approx([moment - mean**2] * 4)
    assert (after["norm.running_var"] > 0).all()
    assert torch.allclose(after["norm.weight"], sent["norm.weight"] + lr)
    back = way_back(sent, tuned, layout)
    further = blended(tuned, back, Candidate(1.0 - lr), layout)
    assert (further["norm.running_var"] > 0).all()
    assert torch.allclose(further["norm.weight"], sent["norm.weight"] + lr)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_a_flat_change_is_the_gathered_change_bit_for_bit(cut, flat):
    model = ConvNet(side=8, channels=(4, 6), hidden=8, classes=10)
    layout = layout_of(model, output=("head",))
    gen = torch.Generator().manual_seed(0)
    shapes = {n: t.shape for n, t in state_of(model).items()}
    sent, tuned = ({n: torch.rand(s, generator=gen) for n, s in shapes.items()} for _ in range(2))
    if flat:
        whole = laid_out(shapes)
        sent = {n: whole[n].copy_(t) for n, t in sent.items()}
    masks = {n: torch.rand(layout.shapes[n], generator=gen) > 0.5 * cut for n in layout.prunable}
    kept = {n: t.clone() for n, t in tuned.items()}
    expected = gathered(change(tuned, sent, layout), masks)
    assert torch.equal(flat_change(tuned, sent, masks, layout), expected)
    assert same(tuned, kept), "it is not written to"
