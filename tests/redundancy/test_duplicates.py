import pytest
import torch
from twins import built, copy_unit, fed, groups

from fedprune.redundancy.duplicates import (
    cosines,
    distance,
    equal_matrices,
    similar_layers,
    similar_units,
)
from fedprune.redundancy.unit_weights import attention_of, outgoing, reader_of
from fedprune.structure.layout import as_rows
from tests.families import FACTS


@pytest.mark.parametrize("name", FACTS)
def test_a_copied_unit_is_found_by_its_weights_and_by_what_it_does(name):
    model, layout, weights = built(name)
    group = groups(layout, "neuron")[0]
    copy_unit(weights, layout, group, 1, 6)
    found = similar_units(layout, weights, fed(name, model, layout, weights), 0.9999)
    first = {(p.path, p.left, p.right, p.by) for p in found if p.kind == "neuron"}
    assert {(group.path, 1, 6, "weights"), (group.path, 1, 6, "activations")} <= first
    assert not [p for p in found if p.kind == "head"]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-gqa", "gpt2-cross"])
def test_a_head_that_is_turned_inside_is_still_the_same(name):
    _, layout, weights = built(name)
    group = groups(layout, "head")[0]
    copy_unit(weights, layout, group, 0, 1)
    reader = reader_of(group)
    rows = as_rows(layout, reader.tensor, weights[reader.tensor])
    rows[:, reader.index[1]] = 3.0 * rows[:, reader.index[0]]  # only longer: the cosine is 1
    pairs = similar_units(layout, weights, None, 0.9999)
    assert [(p.path, p.left, p.right, p.by) for p in pairs] == [(group.path, 0, 1, "weights")]


def test_products_of_heads_are_those_of_their_matrices():
    _, layout, weights = built("llama-gqa")
    group = groups(layout, "head")[0]
    a = attention_of(group, layout, weights)
    patterns = torch.einsum("hgdi,hdj->hgij", a.query, a.key).flatten(1)
    contents = torch.einsum("hgod,hdi->hgoi", a.output, a.value).flatten(1)
    oracle = sum(cosines(x @ x.t()) for x in (patterns, contents)) / 2
    pairs = similar_units(layout, weights, None, 0.0)
    (pair,) = [p for p in pairs if (p.path, p.kind) == (group.path, "head")]
    assert pair.cosine == pytest.approx(float(oracle[0, 1]))


def test_heads_are_compared_by_what_they_add_to_the_output():
    model, layout, weights = built("bert")
    group = groups(layout, "head")[0]
    inputs = fed("bert", model, layout, weights)
    read, reader = outgoing(group, layout, weights), reader_of(group)
    # Of as many rows as columns, with the second moments that were summed.
    rows = torch.linalg.cholesky(inputs.products[reader.tensor]).t()
    added = torch.einsum("rhd,hod->hro", rows[:, reader.index], read).flatten(1)
    oracle = cosines(added @ added.t())
    for pair in similar_units(layout, weights, inputs, 0.0):
        if (pair.path, pair.by) == (group.path, "activations"):
            assert pair.cosine == pytest.approx(float(oracle[pair.left, pair.right]), abs=1e-9)


def test_a_repeated_layer_is_found_and_can_be_shared():
    model, layout, weights = built("llama")
    first, second = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    weights[second] = weights[first].clone()
    pairs = similar_layers(layout, weights, fed("llama", model, layout, weights), 0.9999)
    assert [(p.path, p.other, p.by) for p in pairs] == [(first, second, "weights")]
    assert equal_matrices(layout, weights) == [(second, first, 0.0)]
    weights[second][0, 0] += 1e-6
    assert equal_matrices(layout, weights) == []
    ((name, like, apart),) = equal_matrices(layout, weights, 1e-3)
    assert (name, like) == (second, first)
    assert 0 < apart < 1e-5


def test_second_moments_of_outputs_are_compared_as_matrices():
    model, layout, weights = built("gpt2")
    inputs = fed("gpt2", model, layout, weights)
    names = [n for n in layout.prunable if n.endswith("c_fc.weight")]
    rows = {n: as_rows(layout, n, weights[n]) for n in names}
    flat = torch.stack([(w @ inputs.moments(n) @ w.t()).flatten() for n, w in rows.items()])
    oracle = float(cosines(flat @ flat.t())[0, 1])
    found = [p for p in similar_layers(layout, weights, inputs, 0.0) if p.by == "activations"]
    (pair,) = [p for p in found if (p.path, p.other) == tuple(names)]
    assert pair.cosine == pytest.approx(oracle, abs=1e-6)


def test_distance_and_cosine_of_nothing():
    zero = torch.zeros(3)
    assert distance(zero, zero) == float("inf")
    assert distance(zero, zero + 1) == 1.0
    assert not cosines(torch.zeros(2, 2)).any()
