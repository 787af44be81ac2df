import pytest
import torch
from torch import Tensor
from twins import built, copy_unit, fed, groups, said

from fedprune.redundancy.merging import Merged, mergeable_heads, merged, representatives
from fedprune.redundancy.unit_weights import (
    attention_of,
    bias_of,
    producers_of,
    reader_of,
    without_units,
)
from fedprune.structure.layout import as_rows
from fedprune.tensors.named import Tensors, full_masks, masked
from tests.families import FACTS


def after(weights: Tensors, layout, out: Merged) -> Tensors:
    """The weights once what is not needed any more is at 0."""
    masks = without_units(full_masks(weights, layout.prunable), layout, out.gone)
    return masked({**weights, **out.weights}, masks)


@pytest.mark.parametrize("name", FACTS)
def test_neurons_made_by_the_same_weights_merge_without_a_trace(name):
    model, layout, weights = built(name)
    group = groups(layout, "neuron")[1]
    copy_unit(weights, layout, group, 2, 5)
    copy_unit(weights, layout, group, 2, 9)
    copy_unit(weights, layout, group, 3, 4)
    out = merged(layout, weights, None)
    assert out.gone == {group.path: (4, 5, 9)}
    assert out.errors == {group.path: 0.0}
    expected = said(name, model, weights)
    found = said(name, model, after(weights, layout, out))
    assert torch.allclose(found, expected, atol=1e-9, rtol=0)
    without = masked(weights, without_units(full_masks(weights, layout.prunable), layout, out.gone))
    assert not torch.allclose(said(name, model, without), expected, atol=1e-4)


def test_without_duplicates_nothing_merges():
    for name in FACTS:
        _, layout, weights = built(name)
        assert merged(layout, weights, None) == Merged()


def test_near_duplicates_merge_within_a_distance_and_say_what_it_costs():
    model, layout, weights = built("bert")
    group = groups(layout, "neuron")[0]
    copy_unit(weights, layout, group, 1, 7)
    producer, reader = producers_of(group)[0].tensor, reader_of(group).tensor
    weights[producer][7] += 0.01
    inputs = fed("bert", model, layout, weights)
    assert merged(layout, weights, inputs, 1e-4).gone == {}
    out = merged(layout, weights, inputs, 0.1)
    assert out.gone == {group.path: (7,)}
    error = out.errors[group.path]
    assert 0 < error < 0.05
    assert merged(layout, weights, None, 0.1).errors == {group.path: None}
    # The error is that of the layer's output on these very inputs.
    c = inputs.moments(reader)
    v, w = weights[reader], out.weights[reader]
    values = torch.linalg.cholesky(c + 1e-12 * torch.eye(len(c)))
    oracle = ((v - w) @ values).norm() / (v @ values).norm()
    assert error == pytest.approx(float(oracle), rel=1e-6)


def test_a_near_duplicate_counts_as_the_nearest_multiple():
    """relu(2w) = 2 relu(w): not made by the same weights, and yet merged without an error."""
    model, layout, weights = built("t5")
    group = groups(layout, "neuron")[0]
    copy_unit(weights, layout, group, 0, 1)
    producer = producers_of(group)[0]
    weights[producer.tensor][1] *= 2.0
    out = merged(layout, weights, fed("t5", model, layout, weights), 0.6)
    assert 1 in out.gone[group.path]
    rows, read = weights[reader_of(group).tensor], out.weights[reader_of(group).tensor]
    if out.gone[group.path] == (1,):
        assert torch.allclose(read[:, 0], rows[:, 0] + 2 * rows[:, 1])


@pytest.mark.parametrize(
    ("rows", "within", "expected"),
    [
        ([[1.0], [1.0], [2.0], [1.0]], 0.0, [0, 0, 2, 0]),
        ([[1.0], [1.1], [1.2]], 0.1, [0, 0, 2]),  # the third is near the second, which is gone
        ([[0.0], [0.0], [1.0]], 0.0, [0, 0, 2]),
        ([[1.0], [-1.0]], 0.5, [0, 1]),
    ],
)
def test_representatives(rows, within, expected):
    assert representatives(torch.tensor(rows).double(), within) == expected


ROTARY = ["llama", "llama-gqa", "qwen3", "phi3", "gpt-neox", "modernbert"]
HEADS = ["bert", "roberta", "distilbert", "opt", "vit", "gpt2", "gpt2-cross", *ROTARY]


def alike(weights: Tensors, layout, group, name: str) -> None:
    """Heads 0 and 1 look alike, the second turned inside where it may be; one holds both."""
    attention = attention_of(group, layout, weights)
    size = attention.value.shape[1]
    copy_unit(weights, layout, group, 0, 1)
    producers = producers_of(group)
    value = producers[-1] if len(producers) == 3 else producers[0]
    rows = as_rows(layout, value.tensor, weights[value.tensor])
    bias = bias_of(layout, value.tensor)
    # Half of each head's values are nothing: together they need the size of one.
    for unit, empty in [(0, slice(0, size // 2)), (1, slice(size // 2, size))]:
        places = value.index[unit][-size:][empty]
        rows[places] = 0.0
        if bias is not None:
            weights[bias][places] = 0.0
    if name not in ROTARY:
        _turn(weights, layout, group, size)


def _turn(weights: Tensors, layout, group, size: int) -> None:
    """Other queries and keys with the same products: Q → R Q, K → R⁻ᵀ K."""
    gen = torch.Generator().manual_seed(2)
    turn: Tensor = torch.eye(size).double() + 0.3 * torch.randn(size, size, generator=gen).double()
    producers = producers_of(group)
    fused = {1: [(0, 0), (0, 1)], 2: [(1, 0), (0, 0)], 3: [(0, 0), (1, 0)]}[len(producers)]
    for (which, third), matrix in zip(fused, (turn, turn.inverse().t()), strict=True):
        part = producers[which]
        index = part.index[1][third * size : (third + 1) * size]
        rows = as_rows(layout, part.tensor, weights[part.tensor])
        rows[index] = matrix @ rows[index]
        bias = bias_of(layout, part.tensor)
        if bias is not None:
            weights[bias][index] = matrix @ weights[bias][index]


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_look_alike_and_fit_into_one_merge_without_a_trace(name):
    model, layout, weights = built(name)
    group = groups(layout, "head")[1]
    alike(weights, layout, group, name)
    out = merged(layout, weights, None)
    assert out.gone == {group.path: (1,)}
    expected = said(name, model, weights)
    found = said(name, model, after(weights, layout, out))
    assert torch.allclose(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", HEADS)
def test_heads_whose_values_need_more_than_one_do_not_merge(name):
    _, layout, weights = built(name)
    group = groups(layout, "head")[1]
    producers = producers_of(group)
    values = producers[-1].tensor if len(producers) == 3 else ""
    keep = weights[values].clone() if values else None
    copy_unit(weights, layout, group, 0, 1)
    if keep is None:  # made together with queries and keys: other values again
        rows = as_rows(layout, producers[0].tensor, weights[producers[0].tensor])
        rows[producers[0].index[1][-4:]] += 0.5 * torch.eye(4, rows.shape[1]).double()
    else:
        weights[values] = keep
    assert mergeable_heads(group, layout, weights) == []


def test_queries_and_keys_that_are_turned_by_positions_must_be_equal():
    _, layout, weights = built("llama")
    group = groups(layout, "head")[0]
    alike(weights, layout, group, "llama")
    assert mergeable_heads(group, layout, weights) == [(0, 1)]
    _turn(weights, layout, group, 4)
    assert mergeable_heads(group, layout, weights) == []


def test_of_t5_only_cross_attention_has_heads_to_merge():
    model, layout, weights = built("t5")
    cross = [g for g in groups(layout, "head") if g.path.endswith("EncDecAttention")]
    own = [g for g in groups(layout, "head") if g.path.endswith("SelfAttention")]
    for group in (cross[0], own[0]):
        alike(weights, layout, group, "t5")
    out = merged(layout, weights, None)
    assert out.gone == {cross[0].path: (1,)}
    expected = said("t5", model, weights)
    assert torch.allclose(said("t5", model, after(weights, layout, out)), expected, atol=1e-9)
