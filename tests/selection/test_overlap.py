import functools

import pytest
import torch
from by_hand import gone
from convnets import net_of

from fedprune.selection.select import select
from fedprune.selection.units import along_labels, removable, unit_labels
from fedprune.structure.layout import Layout, layout_of
from fedprune.tensors.named import Masks, Tensors, full_masks
from tests.runs import same

NAMES = ["plain", "residual", "depthwise", "concat"]


@functools.cache
def layout(name: str) -> Layout:
    net, _, head = net_of(name)
    return layout_of(net, output=[head])


def scores_of(name: str, seed: int = 0) -> Tensors:
    gen = torch.Generator().manual_seed(seed)
    shapes = layout(name).shapes
    return {n: torch.rand(shapes[n], generator=gen) for n in layout(name).prunable}


def size(masks: Masks) -> int:
    return sum(map(gone, masks.values()))


@functools.cache
def units_of(name: str) -> list[Masks]:
    """For every channel, where its weights are: those that read it and those that make it."""
    own, more = unit_labels(layout(name), "channel"), along_labels(layout(name), "channel")
    top = 1 + max(int(x.max()) for x in own.values())
    return [{n: (own[n] == u) | (more[n] == u) for n in own} for u in range(top)]


def slow(name: str, scores: Tensors, total: int, floor: int) -> Masks:
    """One channel after the other, the lowest first, until one does not fit."""
    own = unit_labels(layout(name), "channel")
    numbers = range(len(units_of(name)))
    means = [torch.cat([scores[n][own[n] == u] for n in own]).double().mean() for u in numbers]
    masks = full_masks(scores, scores)
    ideal = {n: m.clone() for n, m in masks.items()}
    shut: set[str] = set()
    for unit in sorted(numbers, key=means.__getitem__):
        there = {n: x for n, x in units_of(name)[unit].items() if x.any()}
        for n, x in there.items():
            ideal[n] &= ~x
            if int(ideal[n].sum()) < floor:
                shut.add(n)
        if shut & set(there):
            continue
        after = {n: m & ~there[n] if n in there else m for n, m in masks.items()}
        if size(after) > total:
            break
        masks = after
    return masks


def fitting(name: str, scores: Tensors, sparsity: float, floor: int) -> Masks | None:
    """Masks of channels; None where the floors do not allow for so few weights."""
    try:
        return select(scores, sparsity, unit="channel", layout=layout(name), floor=floor)
    except ValueError as error:
        assert "units and floors allow" in str(error)  # noqa: PT017
        return None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("floor", [1, 30])
def test_against_a_plain_loop(name, floor):
    n = sum(s.numel() for s in scores_of(name).values())
    for seed, sparsity in [(0, 0.2), (1, 0.4), (2, 0.55)]:
        scores = scores_of(name, seed)
        total = int(sparsity * n + 0.5)
        if (masks := fitting(name, scores, sparsity, floor)) is None:
            assert floor == 30
        else:
            assert same(masks, slow(name, scores, total, floor))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_never_more_than_asked_and_nested(name, scope):
    scores = scores_of(name)
    n = sum(s.numel() for s in scores.values())
    largest = max(sum(int(x.sum()) for x in unit.values()) for unit in units_of(name))
    before = full_masks(scores, scores)
    for sparsity in (0.0, 0.1, 0.25, 0.4, 0.5):
        more = {"unit": "channel", "layout": layout(name), "scope": scope}
        masks = select(scores, sparsity, alive=before, **more)
        assert size(masks) <= sparsity * n + 0.5 < size(masks) + largest + 1
        assert all(not (m & ~before[k]).any() for k, m in masks.items())
        before = masks


def test_scope_layer_takes_the_same_share_of_every_group():
    # Channels read by the same layers compete: 6 of the stem, 4 within a block, 5 after it.
    scores = {n: s + 100 * ("two" in n) for n, s in scores_of("residual").items()}
    together = select(scores, 0.5, unit="channel", layout=layout("residual"))
    apart = select(scores, 0.5, unit="channel", layout=layout("residual"), scope="layer")
    assert together["two.weight"].any(0).any((1, 2)).all()
    left = [int(apart[f"{n}.weight"].flatten(2).any(2).any(0).sum()) for n in ("one", "two")]
    assert left[0] in (3, 4)
    assert left[1] in (2, 3)


def test_one_channel_of_every_group_stays_but_without_a_floor():
    for name in NAMES:
        n = sum(s.numel() for s in scores_of(name).values())
        most = removable(layout(name), "channel")
        bare = select(scores_of(name), most / n, unit="channel", layout=layout(name), floor=0)
        assert size(bare) == most
        masks = fitting(name, scores_of(name), most / n, 1) or {}
        assert all(m.any() for m in masks.values())
