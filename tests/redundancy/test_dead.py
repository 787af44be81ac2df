import pytest
import torch
from twins import built, fed, groups, said

from fedprune.redundancy.dead import never_active, never_read
from fedprune.redundancy.unit_weights import bias_of, producers_of, reader_of, without_units
from fedprune.structure.layout import as_rows
from fedprune.tensors.named import full_masks, masked


def test_a_neuron_that_never_fires_is_found_and_goes_without_a_trace():
    model, layout, weights = built("t5")
    group = groups(layout, "neuron")[0]
    (producer,) = producers_of(group)
    rows = as_rows(layout, producer.tensor, weights[producer.tensor])
    expected_dead = never_active(layout, fed("t5", model, layout, weights)).get(group.path, ())
    alive = next(i for i in range(len(rows)) if i not in expected_dead)
    rows[alive] = 0.0  # T5 has no biases: relu(0) is 0
    dead = never_active(layout, fed("t5", model, layout, weights))
    assert dead[group.path] == tuple(sorted((*expected_dead, alive)))
    before = said("t5", model, weights)
    masks = without_units(full_masks(weights, layout.prunable), layout, dead)
    assert torch.allclose(said("t5", model, masked(weights, masks)), before, atol=1e-12)


def test_a_unit_with_a_bias_fires():
    model, layout, weights = built("gpt2")
    group = groups(layout, "neuron")[0]
    (producer,) = producers_of(group)
    as_rows(layout, producer.tensor, weights[producer.tensor])[4] = 0.0
    assert weights[str(bias_of(layout, producer.tensor))][4] != 0
    assert never_active(layout, fed("gpt2", model, layout, weights)) == {}


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_what_nobody_reads_is_dead_by_its_weights(kind):
    _, layout, weights = built("bert")
    group = groups(layout, kind)[1]
    reader = reader_of(group)
    assert never_read(layout, weights) == {}
    as_rows(layout, reader.tensor, weights[reader.tensor])[:, reader.index[2]] = 0.0
    assert never_read(layout, weights) == {group.path: (2,)}
