from itertools import pairwise

import pytest
import torch
from families import family
from hypothesis import given
from hypothesis import strategies as st

from fedprune import select
from fedprune.selection.ladder import (
    FINEST,
    AdaptiveState,
    Point,
    along,
    as_rungs,
    furthest,
    ladder,
    ladder_parts,
    limit,
    paced,
    tries,
    verdict,
    way_of,
)
from fedprune.selection.units import unit_labels
from fedprune.tensors.named import Masks, count_kept, full_masks


@given(st.floats(0, 0.9), st.floats(0.001, 1), st.integers(2, 20), st.floats(0.9, 0.99))
def test_tries_rise_evenly_and_end_at_the_step_or_the_bound(now, step, n, final):
    given_ = tries(now, final, step, n)
    assert len(given_) == n
    assert given_[-1] == min(final, now + step)
    gaps = [b - a for a, b in pairwise([now, *given_])]
    assert all(g == pytest.approx(gaps[0], abs=1e-12) for g in gaps)


@pytest.mark.parametrize(
    ("losses", "most", "took", "said"),
    [
        ([1.0, 1.0, 1.01, 1.5], 1.02, 2, "prune"),
        ([1.0, 1.0, 1.01, 1.02], 1.02, 3, "widen"),
        ([1.0, 1.5, 1.01, 1.5], 1.02, 2, "prune"),
        ([1.0, 1.5, 1.6, 1.7], 1.02, 0, "step back"),
        ([1.1, 1.5, 1.6, 1.7], 1.02, 0, "wait"),
        ([1.1, 1.0, 1.6, 1.7], 1.02, 1, "prune"),
        ([1.0], 1.02, 0, "step back"),
    ],
)
def test_the_sparsest_within_the_limit_is_taken(losses, most, took, said):
    assert furthest(losses, most) == took
    assert verdict(losses, most, took) == said


def test_a_limit_lies_above_a_loss_of_any_sign():
    assert limit(2.0, 0.1) == pytest.approx(2.2)
    assert limit(-2.0, 0.1) == pytest.approx(-1.8)
    assert limit(3.0, 0.0) == 3.0


def test_the_width_halves_doubles_or_stays_and_ends():
    pace = AdaptiveState(0.4)
    for said, step in (("step back", 0.2), ("widen", 0.8), ("prune", 0.4), ("wait", 0.4)):
        assert paced(pace, said, 4).step == step
    steps = 0
    while not pace.done:
        pace, steps = paced(pace, "step back", 4), steps + 1
    assert pace.step < 4 * FINEST <= 2 * pace.step
    assert steps < 10


GEN = torch.Generator().manual_seed(0)
TWO = {"a": torch.randn(10, 3, generator=GEN), "b": torch.randn(10, generator=GEN)}


def choose(sparsity: float, alive: Masks) -> Masks:
    return select(TWO, sparsity, alive=alive, floor=2)


def test_a_ladder_is_nested_and_ends_where_floors_end_it():
    alive = full_masks(TWO, TWO)
    masks = ladder(choose, alive, [0.1, 0.1, 0.5, 0.9, 0.95, 0.99])
    assert [count_kept(m) for m in masks] == [36, 20, 4]
    rungs = as_rungs(alive, masks)
    for rung, mask in enumerate(masks, 1):
        for name in alive:
            assert torch.equal(mask[name], ~((rungs[name] > 0) & (rungs[name] <= rung)))


def test_what_was_gone_before_is_on_no_rung():
    begun = choose(0.3, full_masks(TWO, TWO))
    rungs = as_rungs(begun, ladder(choose, begun, [0.4, 0.6]))
    assert all(not rungs[n][~begun[n]].any() for n in begun)
    assert sum(int((r > 0).sum()) for r in rungs.values()) == 28 - 16


CURVES = {"a": [(10, 0.1), (20, 0.5)], "b": [(5, 0.0), (10, 0.3)], "c": [(4, -0.1)]}


def test_the_cheapest_weights_go_first():
    way = way_of(CURVES, 100)
    assert [p.rungs for p in way[:4]] == [{}, {"c": 1}, {"b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}]
    assert way[3].removed == 19
    assert way[3].rise == pytest.approx(0.0)
    assert (way[-1].removed, way[-1].rise) == (34, pytest.approx(0.7))
    assert [p.removed for p in way_of(CURVES, 18)] == [0, 4, 9, 14], "never above the bound"


def test_places_on_the_way_are_ascending_and_within_parts_of_the_allowance():
    way = [Point({}), *(Point({"a": i}, i, 0.1 * i) for i in range(1, 9))]
    assert [p.removed for p in along(way, 0.41, 3)] == [2, 4, 8]
    assert [p.removed for p in along(way, 0.11, 4)] == [1, 2]
    assert along(way, 0.0, 4) == []
    assert along(way, -1.0, 4) == []


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "bert"])
@pytest.mark.parametrize("unit", ["weight", "row", "head", "neuron"])
def test_every_part_has_tensors_of_its_own_and_whole_units(name, unit):
    layout = family(name).layout
    parts = ladder_parts(layout, unit)
    names = [n for group in parts.values() for n in group]
    assert len(names) == len(set(names)) <= len(layout.prunable)
    labels = unit_labels(layout, unit)
    inside = {n: part for part, group in parts.items() for n in group}
    there = [(number, n) for n, x in labels.items() for number in x.unique().tolist()]
    owned = {(number, inside[n]) for number, n in there if number >= 0}
    assert len(owned) == len({number for number, _ in owned}), "of one part each"
    assert len(parts) == (len(layout.prunable) if unit in {"weight", "row"} else 2)
