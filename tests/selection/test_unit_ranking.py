import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
from by_hand import bits, gone, kept, random_scores, removed_count
from families import family

from fedprune.selection.pools import POOLS
from fedprune.selection.scopes import scopes_of
from fedprune.selection.select import plain_layout, select
from fedprune.selection.units import UNITS, unit_labels
from fedprune.tensors.named import Masks, Tensors, full_masks

INF = math.inf


def slow_units(scores: Tensors, labels: Tensors, total: int, pool: str, floor: int) -> Masks:
    """Whole units one after the other, the lowest first, until the next one does not fit."""
    by_unit: dict[int, list[float]] = {}
    for name, label in labels.items():
        for unit, value in zip(label.reshape(-1).tolist(), scores[name].reshape(-1), strict=True):
            by_unit.setdefault(unit, []).append(float(value))
    by_unit.pop(-1, None)
    pools: dict[str, Callable[[list[float]], float]] = {
        "sum": sum,
        "mean": lambda v: sum(v) / len(v),
        "l2": lambda v: math.sqrt(sum(x * x for x in v) / len(v)),
        "max": max,
        "abs-sum": lambda v: abs(sum(v)),
    }
    masks = full_masks(scores, scores)
    spent, closed = 0, set()
    for unit in sorted(by_unit, key=lambda u: (pools[pool](by_unit[u]), u)):
        there = {n: int((x == unit).sum()) for n, x in labels.items() if (x == unit).any()}
        tight = {n for n, size in there.items() if int(masks[n].sum()) - size < floor}
        if tight or closed & set(there):
            closed |= set(there)
            continue
        if spent + len(by_unit[unit]) > total:
            break
        spent += len(by_unit[unit])
        for name in there:
            masks[name] &= labels[name] != unit
    return masks


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("unit", "shape"), [("block", (2, 3)), ("block", (1, 4)), ("row", None), ("column", None)]
)
def test_units_of_one_tensor_against_a_plain_loop(pool, unit, shape):
    shapes = {"a": (6, 8), "b": (5, 7), "kernel": (4, 3, 2, 2)}
    for seed, sparsity in itertools.product(range(2), (0.0, 0.35, 0.7)):
        scores, of = random_scores(shapes, seed), {"unit": unit, "unit_shape": shape}
        layout = plain_layout(scores)
        masks = select(scores, sparsity, pool=pool, floor=3, **of)
        labels = unit_labels(layout, unit, shape)
        total = removed_count(layout, sparsity, **of)
        assert bits(masks) == bits(slow_units(scores, labels, total, pool, 3))


@pytest.mark.parametrize("unit", ["head", "neuron", "sublayer", "layer"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5-gated", "llama-gqa"])
def test_units_of_several_tensors_against_a_plain_loop(name, unit):
    layout = family(name).layout
    scores = random_scores({n: tuple(layout.shapes[n]) for n in layout.prunable})
    labels = unit_labels(layout, unit)
    n = sum(s.numel() for s in scores.values())
    inside = sum(int((x >= 0).sum()) for x in labels.values()) / n
    for part in (0.2, 0.5, 0.6):
        masks = select(scores, part * inside, unit=unit, layout=layout)
        total = removed_count(layout, part * inside, unit=unit)
        floor = 0 if unit in ("sublayer", "layer") else 1
        assert bits(masks) == bits(slow_units(scores, labels, total, "mean", floor))
        largest = max(int(sum((x == u).sum() for x in labels.values())) for u in range(3))
        assert total - largest < n - kept(masks) <= total


@pytest.mark.parametrize("unit", [u for u in UNITS if u not in ("weight", "n:m", "channel")])
def test_units_go_whole_and_never_come_back(unit):
    layout = family("mixtral" if unit == "expert" else "llama-gqa").layout
    shapes = {n: tuple(layout.shapes[n]) for n in layout.prunable}
    shape = (2, 3) if unit == "block" else None
    labels = unit_labels(layout, unit, shape)
    n = sum(x.numel() for x in labels.values())
    inside = sum(int((x >= 0).sum()) for x in labels.values()) / n
    inside /= 3 * 0.72 if unit == "expert" else 1  # of three experts two have to stay
    for scope in scopes_of(unit):
        how = {"scope": scope, "unit": unit, "unit_shape": shape, "layout": layout}
        how |= {"densities": {"*self_attn*": 0.7}} if scope == "patterns" else {}
        how |= {"magnitude": random_scores(shapes, 9)}
        alive = full_masks(labels, labels)
        for step in range(1, 5):
            before, scores = alive, random_scores(shapes, step)
            alive = select(scores, 0.18 * step * inside, alive=before, progress=step / 4, **how)
            assert not any((alive[n] & ~before[n]).any() for n in alive)
            went = torch.cat([labels[n][~m] for n, m in alive.items()]).unique()
            stayed = torch.cat([labels[n][m] for n, m in alive.items()]).unique()
            assert -1 not in went
            assert not set(went.tolist()) & set(stayed.tolist()), "a unit went in part"
        assert any(gone(m) for m in alive.values())


def test_layer_scope_takes_heads_from_every_attention_alike():
    layout = family("t5").layout
    scores = random_scores({n: tuple(layout.shapes[n]) for n in layout.prunable})
    scores = {n: s + (100 if "encoder" in n else 0) for n, s in scores.items()}
    inside = sum(int((x >= 0).sum()) for x in unit_labels(layout, "head").values())
    n = sum(s.numel() for s in scores.values())
    masks = select(scores, inside / n / 3, unit="head", scope="layer", layout=layout)
    for group in layout.structure.groups:
        lost = {gone(masks[p.tensor]) * 3 == masks[p.tensor].numel() for p in group.parts}
        assert lost == {group.kind == "head"}


def test_ties_of_units_go_by_magnitude_then_position():
    same = {"w": torch.ones(4, 3)}
    size = {"w": torch.tensor([[2.0] * 3, [1] * 3, [2] * 3, [3] * 3])}
    assert bits(select(same, 0.5, unit="row")) == {"w": "000000111111"}
    assert bits(select(same, 0.25, unit="row", magnitude=size)) == {"w": "111000111111"}
    assert bits(select(same, 0.5, unit="row", magnitude=size)) == {"w": "000000111111"}
    assert bits(select(same, 0.7, unit="row")) == {"w": "000000111111"}  # the third would not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "rows"}, "unit='rows': no such unit; allowed: weight, n:m, "),
        ({"unit": "row", "pool": "median"}, "pool='median': no such pool; allowed: mean, "),
        ({"unit": "head"}, "unit='head': no head was recognised in this model, which takes an"),
        ({"unit": "row", "sparsity": 1.0}, "cannot remove 12 of 12 weights: units and floors all"),
        ({"unit": "row", "alive": {"w": torch.zeros(4, 3) > 0}}, "cannot remove 6 of 12 weights: "),
    ],
)
def test_errors_of_units(options, message):
    given = {"sparsity": 0.5, **options}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        select({"w": torch.arange(12.0).reshape(4, 3)}, **given)


def test_infinities_of_both_signs_have_no_mean_but_a_maximum():
    scores = {"w": torch.tensor([[INF, -INF], [1.0, 2.0]])}
    with pytest.raises(ValueError, match=r"^pool='mean': a unit has scores inf and -inf"):
        select(scores, 0.5, unit="row")
    assert bits(select(scores, 0.5, unit="row", pool="max")) == {"w": "1100"}
