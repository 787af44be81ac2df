import copy
import pickle
from collections.abc import Iterable

import pytest
import torch
from convnets import NETS, found, net_of
from specimens import Specimen, taken
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.scores.catalog import SCORES
from fedprune.selection.select import select
from fedprune.selection.units import unit_labels
from fedprune.structure.channels.cut import cut_channels
from fedprune.structure.channels.groups import channel_groups
from fedprune.structure.cuts import edits_of, places
from fedprune.structure.edits import Edit
from fedprune.structure.layout import Layout, as_rows, layout_of
from fedprune.structure.surgery import ordered, reshaped
from fedprune.tasks.losses import classification_loss
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Masks, masked

SPARSITIES = [0.3, 0.5, 0.65]


def masks_of(net: nn.Module, layout: Layout, sparsity: float, seed: int = 0) -> Masks:
    gen = torch.Generator().manual_seed(seed)
    state = state_of(net)
    scores = {n: torch.rand(state[n].shape, generator=gen) for n in layout.prunable}
    return select(scores, sparsity, unit="channel", layout=layout)


def cut_by(net: nn.Module, edits: Iterable[Edit]) -> nn.Module:
    for edit in edits:
        cut_channels(net, edit)
    return net


def edits_by_hand(layout: Layout, masks: Masks) -> list[Edit]:
    """The channels of which any weight that reads them is left."""
    edits = []
    for group in layout.structure.groups:
        left = torch.zeros(len(group.parts[0].index), dtype=torch.bool)
        for part in group.parts:
            if part.axis == "column":
                rows = as_rows(layout, part.tensor, masks[part.tensor])
                left |= rows.any(0)[part.index].any(1)
        if not left.all():
            edits.append(Edit("channel", group.path, tuple(left.nonzero()[:, 0].tolist())))
    return edits


def pair(name: str, sparsity: float) -> tuple[nn.Module, nn.Module, Masks, list[Edit], Tensor]:
    """A net with channels masked, the same one with them cut out."""
    net, seen, head = net_of(name)
    layout = layout_of(net, output=[head])
    masks = masks_of(net, layout, sparsity)
    edits = edits_by_hand(layout, masks)
    load_into(net, {**state_of(net), **masked({n: state_of(net)[n] for n in masks}, masks)})
    assert edits_of(masks, layout) == ordered(edits)
    return net, cut_by(copy.deepcopy(net), edits), masks, edits, seen


@pytest.mark.sampled(7)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", NETS)
def test_cut_equals_masked(name, sparsity, training):
    net, cut, _, edits, seen = pair(name, sparsity)
    whole, _, _ = net_of(name)
    assert edits
    for each in (net, cut, whole):
        each.train(training)
        each.requires_grad_(False)
    out = net(seen)
    assert (cut(seen) - out).abs().max() <= 1e-9
    assert (whole(seen) - out).abs().max() > 1e-3
    if training:  # what BatchNorm has seen since is the same too
        assert (cut.eval()(seen) - net.eval()(seen)).abs().max() <= 1e-9
    single, small = net.float(), cut.float()
    expected = single(seen.float())
    assert (small(seen.float()) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NETS)
def test_what_is_masked_is_what_is_cut(name):
    net, cut, masks, _, _ = pair(name, 0.45)
    small = state_of(cut)
    assert small.keys() == state_of(net).keys()
    for n, mask in masks.items():
        assert small[n].numel() == int(mask.sum())
        assert torch.equal(small[n].reshape(-1), state_of(net)[n][mask])
    assert all(torch.equal(t, t.clone()) and t.is_contiguous() for t in small.values())
    assert [n for n, _ in cut.named_parameters()] == [n for n, _ in net.named_parameters()]


def flops(net: nn.Module, seen: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(seen)
    return counter.get_total_flops()


def test_flops_fall_with_every_layer_that_was_cut():
    net, cut, masks, _, seen = pair("residual", 0.45)
    pixels = {"stem": 36, "one": 36, "two": 36, "three": 9, "side": 9, "hidden": 1, "head": 1}
    counted = {n: net.get_parameter(f"{n}.weight").numel() for n in pixels}
    assert flops(net, seen) == 2 * len(seen) * sum(counted[n] * p for n, p in pixels.items())
    kept = {n: int(masks.get(f"{n}.weight", torch.ones(counted[n])).sum()) for n in pixels}
    assert flops(cut, seen) == 2 * len(seen) * sum(kept[n] * p for n, p in pixels.items())


@pytest.mark.parametrize("name", NETS)
def test_a_step_of_training_is_the_same_one(name):
    net, cut, masks, edits, seen = pair(name, 0.45)
    gen = torch.Generator().manual_seed(3)
    target = torch.randn(len(seen), 3, generator=gen, dtype=torch.float64)
    for each in (net, cut):
        each.train()
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05)
        (each(seen) - target).square().mean().backward()
        if each is net:
            for n, mask in masks.items():
                each.get_parameter(n).grad.mul_(mask)
        optimizer.step()
    for n, value in state_of(cut_by(net, edits)).items():
        assert (state_of(cut)[n] - value).abs().max() <= 1e-9, n


def test_a_cut_net_is_an_ordinary_one():
    net, cut, _, edits, seen = pair("depthwise", 0.45)
    again = pickle.loads(pickle.dumps(copy.deepcopy(cut)))
    assert torch.equal(again(seen), cut(seen))
    before, kept = found(net), {e.path: len(e.kept) for e in edits}
    assert found(cut) == {p: kept.get(p, n) for p, n in before.items() if kept.get(p, n) > 1}
    assert (cut.deep.groups, cut.deep.in_channels, cut.norm.num_features) == (kept["up"],) * 3
    assert cut.hidden.in_features == 9 * kept.get("down", 4)


def test_frozen_stays_frozen_and_other_parameters_stay_the_same_objects():
    net, _, _ = net_of("residual")
    net.norm1.weight.requires_grad_(False)
    head = net.head.weight
    cut_channels(net, Edit("channel", "one", (0, 2)))
    assert not net.norm1.weight.requires_grad
    assert net.one.weight.requires_grad
    assert net.head.weight is head
    assert net.one.weight.shape == (2, 6, 3, 3)
    assert net.two.weight.shape == (6, 2, 3, 3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("channel", "two", (0,)), r"channel edit of 'two': no such channels; allowed: stem, "),
        (Edit("channel", "one", ()), r"channel edit of 'one': kept \[\]; allowed: some of 0 to 3"),
        (Edit("channel", "one", (1, 4)), r"kept \[1, 4\]; allowed: some of 0 to 3"),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit, message):
    net, _, _ = net_of("residual")
    with pytest.raises(ValueError, match=message):
        cut_channels(net, edit)


def test_edits_of_several_groups_commute():
    net, again = net_of("concat")[0], net_of("concat")[0]
    groups = channel_groups(net, layout_of(net, output=["head"]).prunable)
    edits = [Edit("channel", g.path, (0, len(g.parts[0].index) - 1)) for g in groups]
    left, right = state_of(cut_by(net, edits)), state_of(cut_by(again, edits[::-1]))
    assert all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("name", ["residual", "concat"])
def test_the_score_of_removing_a_channel_is_what_cutting_it_does_to_the_loss(name):
    net, seen, head = net_of(name)
    layout = layout_of(net, output=[head])
    part = {"images": seen, "labels": torch.arange(len(seen)) % 3}
    full = {n: torch.ones(layout.shapes[n], dtype=torch.bool) for n in layout.prunable}
    s = Specimen(net, layout, classification_loss, (part,), full, 1)
    score = SCORES["ablation"].finalise(taken(SCORES["ablation"], s, [part], unit="channel"))
    labels = unit_labels(layout, "channel")
    net.requires_grad_(False)
    before = float(classification_loss(net, part).total)
    sizes = {g.path: range(len(g.parts[0].index)) for g in layout.structure.groups}
    each = [(path, gone) for path, channels in sizes.items() for gone in channels]
    for number, (path, gone) in enumerate(each):
        cut = net_of(name)[0].requires_grad_(False)
        cut_channels(cut, Edit("channel", path, tuple(i for i in sizes[path] if i != gone)))
        change = abs(float(classification_loss(cut, part).total) - before) / len(seen)
        own = torch.cat([score[n][labels[n] == number] for n in labels])
        assert (own - change).abs().max() <= 1e-9


def test_a_channel_s_gradient_times_weights_is_that_of_a_gate_behind_it():
    """Seed 001's contribution |sum of w dL/dw|: the reader's columns hold all of it."""
    net, seen, head = net_of("plain")
    gate = torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True)
    hook = net.features[4].register_forward_pre_hook(lambda _, args: (args[0] * gate,))
    net(seen).square().sum().backward()
    hook.remove()
    labels = unit_labels(layout_of(net, output=[head]), "channel")
    for channel in range(3):
        products = [
            (p.grad * p.detach())[labels[n] == channel].sum()
            for n, p in net.named_parameters()
            if n in labels
        ]
        assert float(sum(products)) == pytest.approx(float(gate.grad[channel]), rel=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_cuts_follow_on_cuts_in_original_indices(name):
    dense, seen, head = net_of(name)
    layout = layout_of(dense, output=[head])
    first = edits_of(masks_of(dense, layout, 0.3), layout)
    once = reshaped(copy.deepcopy(dense), first)
    small = layout_of(once, output=[head])
    second = edits_of(masks_of(once, small, 0.3, seed=1), small, first)
    twice = reshaped(copy.deepcopy(dense), second)
    before = {e.path: e.kept for e in first}
    assert any(set(e.kept) < set(before.get(e.path, range(99))) for e in second)
    assert all(set(e.kept) <= set(before.get(e.path, range(99))) for e in second)
    where = places(dense, second)
    restricted = where.restrict(state_of(dense))
    assert all(torch.equal(restricted[n], t) for n, t in state_of(twice).items())
    assert twice(seen).shape == dense(seen).shape


def test_a_group_without_any_channel_left_keeps_one_that_stays_masked():
    net, seen, head = net_of("plain")
    layout = layout_of(net, output=[head])
    masks = {n: ~((x >= 0) & (x < 3)) for n, x in unit_labels(layout, "channel").items()}
    masks["features.0.weight"][:] = False
    edits = edits_of(masks, layout)
    assert edits == (Edit("channel", "features.0", (0,)),)
    load_into(net, {**state_of(net), **masked({n: state_of(net)[n] for n in masks}, masks)})
    cut = reshaped(copy.deepcopy(net), edits)
    assert not cut.features[0].weight.any()
    assert torch.allclose(cut(seen), net(seen), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "path"), [("plain", "hidden"), ("residual", "two")])
def test_channels_are_cut_from_factors_like_from_any_layer(name, path):
    net, seen, head = net_of(name)
    cuts = [Edit("channel", g.path, (0, 2)) for g in layout_of(net, output=[head]).structure.groups]
    rank = Edit("rank", path, (4,))
    factored = reshaped(copy.deepcopy(net), [rank])
    layout = layout_of(factored, output=[head])
    assert {g.path for g in layout.structure.groups} == {e.path for e in cuts}
    units = [unit for g in layout.structure.groups for unit in range(len(g.parts[0].index))]
    with torch.no_grad():
        for n, labels in unit_labels(layout, "channel").items():
            for number, unit in enumerate(units):
                state_of(factored)[n][labels == number] *= unit in (0, 2)
        small = reshaped(copy.deepcopy(net), [*cuts, rank])
        assert (small(seen) - factored(seen)).abs().max() <= 1e-9
    assert [n for n, _ in small.named_parameters()] == [n for n, _ in factored.named_parameters()]
