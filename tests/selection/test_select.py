import itertools
import math
import re
from typing import Any

import pytest
import torch
from by_hand import bits, gone, kept, random_scores, removed_count
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.selection.apart import apart, select_apart
from fedprune.selection.rules import Rules
from fedprune.selection.schedules import SCHEDULES, Steps, sparsity_at
from fedprune.selection.scopes import SCOPES
from fedprune.selection.select import above, plain_layout, select, select_by
from fedprune.tensors.named import Masks, Tensors, full_masks

INF = math.inf
# Few different values, so that most drawn weights are tied with others.
VALUES = st.sampled_from([-INF, -1.0, -0.0, 0.0, 0.1, 1.0, INF])
SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=4)


def ranked(scores: Tensors, alive: Masks, magnitude: Tensors) -> list[tuple[Any, ...]]:
    """All that live, the lowest first: by score, size and position; then by name and place."""
    every, number = [], itertools.count()
    for name, score in scores.items():
        tensors = (score, magnitude[name].abs(), alive[name])
        rows = zip(*(t.reshape(-1).tolist() for t in tensors), strict=True)
        for place, (value, size, lives) in enumerate(rows):
            every += [(value, size, next(number), name, place)] * lives
    return sorted(every)


def slow_global(
    scores: Tensors, sparsity: float, alive: Masks, magnitude: Tensors, floor: int
) -> Masks | None:
    """The rule said plainly with one sort; None where the count cannot be had."""
    living, whole = ranked(scores, alive, magnitude), sum(s.numel() for s in scores.values())
    free = []
    for name in scores:
        own = [w for w in living if w[3] == name]
        free += own[: max(len(own) - floor, 0)]
    count = math.floor(sparsity * whole + 0.5) - (whole - len(living))
    if not 0 <= count <= len(free):
        return None
    masks = {name: mask.clone() for name, mask in alive.items()}
    for *_, name, place in sorted(free)[:count]:
        masks[name].view(-1)[place] = False
    return masks


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Tensors, Tensors, Masks]:
    """Scores, magnitudes and alive masks of a few small tensors."""
    sizes = draw(SIZES)
    names = [f"layer{i}" for i in range(len(sizes))]

    def tensors(values: st.SearchStrategy, dtype: torch.dtype) -> Tensors:
        rows = [draw(st.lists(values, min_size=n, max_size=n)) for n in sizes]
        return {k: torch.tensor(r, dtype=dtype) for k, r in zip(names, rows, strict=True)}

    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    scores = tensors(VALUES, dtype)
    magnitude = tensors(st.sampled_from([-2.0, -1.0, 0.0, 1.0]), torch.float32)
    return scores, magnitude, tensors(st.booleans(), torch.bool)


@given(rankings(), st.floats(0, 1), st.integers(0, 3))
def test_global_equals_a_plain_sort(drawn, sparsity, floor):
    scores, magnitude, alive = drawn
    expected = slow_global(scores, sparsity, alive, magnitude, floor)
    options = {"alive": alive, "magnitude": magnitude, "floor": floor}
    if expected is None:
        with pytest.raises(ValueError, match="cannot remove"):
            select(scores, sparsity, **options)
    else:
        assert bits(select(scores, sparsity, **options)) == bits(expected)


@given(rankings(), st.floats(0, 1), st.integers(0, 3))
def test_layer_scope_ranks_each_tensor_alone_and_counts_exactly(drawn, sparsity, floor):
    scores, magnitude, alive = drawn
    options = {"alive": alive, "magnitude": magnitude, "floor": floor}
    n = sum(s.numel() for s in scores.values())
    total = math.floor(sparsity * n + 0.5)
    gone = n - kept(alive)
    most = n - sum(min(floor, int(mask.sum())) for mask in alive.values())
    if not gone <= total <= most:
        with pytest.raises(ValueError, match="cannot remove"):
            select(scores, sparsity, scope="layer", **options)
        return
    masks = select(scores, sparsity, scope="layer", **options)
    assert n - kept(masks) == total
    for name, mask in masks.items():
        own = {k: {name: v[name]} for k, v in options.items() if k != "floor"}
        alone = (int((~mask).sum()) / mask.numel()) if mask.numel() else 0.0
        expected = slow_global({name: scores[name]}, alone, floor=floor, **own)
        assert bits({name: mask}) == bits(expected)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.floats(0, 1))
def test_layer_scope_rounds_every_tensor_to_a_neighbour_of_its_share(sizes, sparsity):
    scores = {str(i): torch.zeros(n) for i, n in enumerate(sizes)}
    masks = select(scores, sparsity, scope="layer", floor=0)
    for mask in masks.values():
        share = sparsity * mask.numel()
        assert math.floor(share) <= int((~mask).sum()) <= math.ceil(share)


@pytest.mark.parametrize(
    ("sizes", "sparsity", "floor", "living", "expected"),
    [
        ([4, 4], 0.5, 1, [4, 4], [2, 2]),
        ([3, 3, 3], 0.5, 0, [3, 3, 3], [2, 2, 1]),  # 1.5 each, 5 in all: earlier tensors first
        ([1, 10], 0.5, 0, [1, 10], [1, 5]),  # 0.5 and 5, 6 in all
        ([10, 2, 3], 0.3, 0, [10, 2, 3], [3, 1, 1]),  # 3, 0.6, 0.9
        ([1, 1, 18], 0.8, 1, [1, 1, 18], [0, 0, 16]),  # the small ones stay, the large one pays
        ([2, 8, 8], 2 / 3, 2, [2, 8, 8], [0, 6, 6]),  # as many as floors of two allow
        ([4, 4, 4], 0.5, 0, [0, 4, 4], [4, 1, 1]),  # the first lost all of its weights before
        ([4, 4, 4], 0.5, 2, [4, 0, 4], [1, 4, 1]),
        ([4, 4, 2, 10], 0.5, 4, [0, 4, 2, 10], [4, 0, 0, 6]),  # both kinds of limit
    ],
)
def test_layer_counts(sizes, sparsity, floor, living, expected):
    scores = {str(i): torch.zeros(n) for i, n in enumerate(sizes)}
    alive = {k: torch.arange(len(s)) < a for (k, s), a in zip(scores.items(), living, strict=True)}
    masks = select(scores, sparsity, scope="layer", floor=floor, alive=alive)
    assert [int((~m).sum()) for m in masks.values()] == expected


@pytest.mark.sampled(2)
@given(
    st.sampled_from(["layer", "row", "column", "er", "patterns", "global"]),
    st.floats(0, 0.9),
    st.integers(0, 99),
)
def test_one_tensor_at_a_time_is_the_same(scope, sparsity, seed):
    scores = random_scores({"a": (5, 7), "b": (3, 4), "c": (11,)}, seed)
    gen = torch.Generator().manual_seed(seed)
    magnitude = {n: torch.randn(s.shape, generator=gen) for n, s in scores.items()}
    alive = {n: torch.rand(s.shape, generator=gen) < 0.9 for n, s in scores.items()}
    densities = {"b": 0.9, "*": 1 - sparsity} if scope == "patterns" else {}
    rules = Rules(scope=scope, floor=2, densities=densities)
    found, how = [], {"alive": alive, "magnitude": magnitude}
    for pruned, scored in ((select_by, scores), (select_apart, scores.__getitem__)):
        try:
            found.append(bits(pruned(rules, scored, sparsity, **how)))
        except ValueError as error:
            found.append({"error": str(error)})
    assert found[0] == found[1]
    assert apart("weight", scope)
    assert apart("n:m", "global")
    assert not apart("weight", "owl")


@pytest.mark.parametrize("scope", list(SCOPES))
@given(rankings(), st.sampled_from(list(SCHEDULES)))
def test_masks_of_a_schedule_only_shrink(scope, drawn, schedule):
    scores, magnitude, _ = drawn
    alive, n = full_masks(scores, scores), sum(s.numel() for s in scores.values())
    for round_ in range(1, 7):
        sparsity = sparsity_at(schedule, round_, Steps(2, 6, 2), 0.9)
        before = alive
        rolled = {k: s.roll(round_) for k, s in scores.items()}
        how = {"scope": scope, "alive": before, "magnitude": magnitude, "floor": 0}
        alive = select(rolled, sparsity, **how)
        assert kept(alive) == n - math.floor(sparsity * n + 0.5)
        assert not any((alive[name] & ~before[name]).any() for name in alive)


def test_shapes_strides_dtypes_and_arguments_are_left_alone():
    base = torch.arange(12.0).reshape(3, 4)
    scores = {
        "transposed": base.t(),
        "scalar": torch.tensor(100.0, dtype=torch.float64, requires_grad=True),
        "none": torch.empty(2, 0, 3),
        "votes": torch.tensor([[40, 2], [50, 1]]),
    }
    alive = full_masks(scores, scores)
    masks = select(scores, 6 / 17, alive=alive)
    assert all((masks[n].shape, masks[n].dtype) == (s.shape, torch.bool) for n, s in scores.items())
    # The lowest are 0, 1, 1, 2, 2, 3; `transposed` counts its own order, not its memory's.
    assert torch.equal(masks["transposed"], base.t() > 3)
    assert [bits(masks)[n] for n in ("scalar", "none", "votes")] == ["1", "", "1010"]
    assert torch.equal(base, torch.arange(12.0).reshape(3, 4))
    assert all(mask.all() for mask in alive.values())
    assert masks["votes"].data_ptr() != select(scores, 0.0, alive=alive)["votes"].data_ptr()


def test_mixed_types_compare_by_value_and_of_nothing_comes_nothing():
    near = torch.tensor([0.1], dtype=torch.float32)  # 0.100000001
    scores = {"a": near, "b": torch.tensor([0.1, 0.100000002], dtype=torch.float64)}
    assert bits(select(scores, 1 / 3, floor=0)) == {"a": "1", "b": "01"}
    assert bits(select(scores, 2 / 3, floor=0)) == {"a": "0", "b": "01"}
    assert select({}, 0.5) == select({}, 0.5, scope="layer") == above({}, 0.0) == {}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"threshold": 2.0}, {"a": "001", "b": "01"}),
        ({"threshold": 9.0}, {"a": "001", "b": "01"}),  # the floor
        ({"threshold": 9.0, "floor": 0}, {"a": "000", "b": "00"}),
        ({"threshold": 9.0, "floor": 2}, {"a": "101", "b": "11"}),
        ({"threshold": -INF}, {"a": "111", "b": "11"}),
        ({"threshold": INF, "floor": 0}, {"a": "000", "b": "00"}),
    ],
)
def test_above_keeps_what_exceeds_the_threshold(options, expected):
    scores = {"a": torch.tensor([2.0, 1.0, 3.0]), "b": torch.tensor([2.0, 4.0])}
    assert bits(above(scores, **options)) == expected


def test_above_revives_nothing_and_breaks_ties_at_the_floor():
    scores = {"a": torch.tensor([9.0, 1, 1, 1])}
    alive = {"a": torch.tensor([False, True, True, True])}
    magnitude = {"a": torch.tensor([9.0, 1, -3, 2])}
    assert bits(above(scores, 5.0, alive=alive)) == {"a": "0001"}
    assert bits(above(scores, 5.0, alive=alive, magnitude=magnitude)) == {"a": "0010"}
    assert bits(above(scores, 0.5, alive=alive)) == {"a": "0111"}


W = {"w": torch.arange(4.0)}
TRUE4 = torch.ones(4, dtype=torch.bool)
NANS = {"a": W["w"], "b": torch.tensor([[0.0, math.nan]])}
WRONG: list[tuple[Tensors, float, dict[str, Any], str]] = [
    (W, 1.5, {}, "sparsity must be in [0, 1], got 1.5"),
    (W, -0.1, {}, "sparsity must be in [0, 1], got -0.1"),
    (W, math.nan, {}, "sparsity must be in [0, 1], got nan"),
    (W, 0.5, {"scope": "rows"}, "unknown scope 'rows': allowed are " + ", ".join(SCOPES)),
    (W, 0.5, {"floor": -1}, "floor must be 0 or more, got -1"),
    (W, 1.0, {}, "cannot remove 4 of 4 weights: floor 1 allows 3"),
    (W, 1.0, {"scope": "layer", "floor": 2}, "cannot remove 4 of 4 weights: floor 2 allows 2"),
    (W, 0.25, {"alive": {"w": W["w"] > 1}}, "cannot remove 1 of 4 weights: 2 are removed already"),
    ({"w": TRUE4.numpy()}, 0.5, {}, "scores of 'w': ndarray; allowed: a tensor"),
    (NANS, 0.5, {}, "scores of 'b': NaN in 1 places"),
    (W, 0.5, {"magnitude": {"w": TRUE4 * math.nan}}, "magnitude of 'w': NaN in 4 places"),
    (W, 0.5, {"alive": {"v": TRUE4}}, "alive and scores differ in names: ['v', 'w'] are on"),
    (W, 0.5, {"magnitude": {}}, "magnitude and scores differ in names: ['w'] are on one side"),
    (W, 0.5, {"alive": {"w": TRUE4.reshape(2, 2)}}, "alive of 'w' has shape (2, 2), its scores (4"),
    (W, 0.5, {"alive": {"w": torch.ones(4)}}, "alive of 'w' must be boolean, got torch.float32"),
]


@pytest.mark.parametrize(("scores", "sparsity", "options", "message"), WRONG)
def test_errors_say_what_is_wrong(scores, sparsity, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        select(scores, sparsity, **options)


def test_a_threshold_or_a_score_of_nan_is_refused():
    with pytest.raises(ValueError, match=r"^threshold is NaN$"):
        above(W, math.nan)
    with pytest.raises(ValueError, match=r"^scores of 'b': NaN in 1 places$"):
        above(NANS, 1.0)


SHAPES = {"a": (6, 8), "b": (5, 7), "kernel": (4, 3, 2, 2), "bias": (9,)}


@pytest.mark.parametrize("scope", [name for name in SCOPES if name != "patterns"])
@settings(max_examples=25)
@given(sparsity=st.floats(0, 1), seed=st.integers(0, 9))
def test_every_scope_counts_exactly_whatever_the_floors(scope, sparsity, seed):
    scores = random_scores(SHAPES, seed)
    n = sum(s.numel() for s in scores.values())
    sparsity *= (n - 2 * len(scores)) / n
    masks = select(scores, sparsity, scope=scope, floor=2)
    counted = removed_count(plain_layout(scores), sparsity)
    assert n - kept(masks) == math.floor(sparsity * n + 0.5) == counted
    assert all(int(m.sum()) >= 2 for m in masks.values())


@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_ranks_by_score_within_what_it_compares(scope):
    scores = random_scores(SHAPES)
    masks = select(scores, 0.6, scope=scope)
    for name, mask in masks.items():
        lines, found = mask.reshape(1, -1), scores[name].reshape(1, -1)
        if scope in ("row", "column") and mask.dim() > 1:
            lines, found = mask.flatten(1), scores[name].flatten(1)
            lines, found = (lines.t(), found.t()) if scope == "column" else (lines, found)
            lost = (~lines).sum(1)
            assert int(lost.max() - lost.min()) <= 1
        for row, values in zip(lines, found, strict=True):
            assert row.all() or not row.any() or values[~row].max() <= values[row].min()


@given(rankings(), st.floats(0, 1), st.floats(0.2, 1), st.integers(0, 2))
def test_caps_and_floors_against_a_water_level(drawn, sparsity, cap, floor):
    """The oracle tries every cut of the plain order and clamps each tensor's loss to its limits."""
    scores, magnitude, alive = drawn
    sizes = {n: s.numel() for n, s in scores.items()}
    total = math.floor(sparsity * sum(sizes.values()) + 0.5)
    living = {n: int(m.sum()) for n, m in alive.items()}
    least = {n: min(floor, living[n]) for n in sizes}
    most = {n: sizes[n] - least[n] for n in sizes}
    caps = {n: max(least[n], math.floor(cap * sizes[n] + 1e-9)) for n in sizes}
    must = {n: max(sizes[n] - living[n], sizes[n] - caps[n]) for n in sizes}
    options = {"alive": alive, "magnitude": magnitude, "floor": floor, "max_density": cap}
    if not max(sum(must.values()), 0) <= total <= sum(most.values()):
        with pytest.raises(ValueError, match="cannot remove"):
            select(scores, sparsity, **options)
        return
    everyone = ranked(scores, alive, magnitude)
    start = {n: sizes[n] - living[n] for n in sizes}
    for cut in range(len(everyone) + 1):
        below = {n: start[n] + sum(w[3] == n for w in everyone[:cut]) for n in sizes}
        level = {n: min(max(below[n], must[n]), most[n]) for n in sizes}
        if sum(level.values()) == total:
            break
    masks = select(scores, sparsity, **options)
    assert {n: gone(m) for n, m in masks.items()} == level


def test_caps_take_from_where_the_ranking_would_not():
    scores = {"low": torch.arange(10.0), "high": torch.arange(10.0) + 10}
    masks = select(scores, 0.5, max_density=0.8)
    assert bits(masks) == {"low": "0000000011", "high": "0011111111"}
    half_way = select(scores, 0.25, max_density=0.8, progress=0.5)
    assert bits(half_way) == {"low": "0000111111", "high": "0111111111"}
    assert bits(select(scores, 0.5, min_density=0.3)) == {"low": "0000000111", "high": "0001111111"}
    with pytest.raises(ValueError, match="max_density takes 4"):
        select(scores, 0.1, max_density=0.8)


def test_patterns_say_what_goes_and_the_last_that_matches_counts():
    scores = random_scores({"a.w": (4, 5), "b.w": (4, 5), "c.w": (4, 5)})
    options = {"scope": "patterns", "densities": {"*": 0.5, "b*": 0.25}}
    masks = select(scores, 0.9, **options)
    assert [gone(m) for m in masks.values()] == [10, 15, 10]
    assert removed_count(plain_layout(scores), 0.9, **options) == 35
    half = select(scores, 0.0, **options, progress=0.5)
    assert [gone(m) for m in half.values()] == [5, 8, 5]  # 7.5 of 17.5 + 0.5 in all
    some = select(scores, 0.9, scope="patterns", densities={"a*": 1.0})
    assert [gone(m) for m in some.values()] == [0, 18, 18]
    with pytest.raises(ValueError, match=r"^layers='d': matches no prunable tensor; allowed: "):
        select(scores, 0.9, scope="patterns", densities={"d": 0.5})
