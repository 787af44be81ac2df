"""The model that edits describe: its shape, its layout, and what its choices count."""

import pytest
import torch

from fedprune import RunConfig
from fedprune.protocol.choice import Wanted, chosen
from fedprune.protocol.models import dense_model, layout_after, layout_for, shaped
from fedprune.structure.edits import Edit
from fedprune.tensors.models import state_of
from fedprune.tensors.named import count_kept, full_masks
from tests.runs import tiny

FACTOR = Edit("rank", "model.layers.0.mlp.down_proj", (8,))
CUT = Edit("neuron", "model.layers.0.mlp", tuple(range(0, 176, 2)))
SHARED = Edit("share", "model.layers.1.mlp.up_proj", (), "model.layers.0.mlp.up_proj")


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return tiny(task="shakespeare", clients=2, cohort=2, length=16)


def test_without_edits_it_is_the_dense_model(config):
    model, layout = shaped(config, ())
    assert layout.shapes == layout_for(config, dense_model(config)).shapes
    assert layout.origin is None
    assert layout.whole == sum(layout.shapes[n].numel() for n in layout.prunable)
    assert sum(p.numel() for p in model.parameters()) == layout.parameters


@pytest.mark.parametrize("edits", [(FACTOR,), (FACTOR, CUT), (CUT,), (SHARED,)], ids=str)
def test_the_layout_says_what_is_there_and_counts_the_dense_weights(config, edits):
    dense = layout_for(config, dense_model(config))
    model, layout = shaped(config, edits)
    assert sum(p.numel() for p in model.parameters()) == layout.parameters < dense.parameters
    assert layout.whole == dense.whole
    assert {n: t.shape for n, t in state_of(model).items()} == layout.shapes
    assert (layout.origin is None) == (CUT not in edits)
    # A sparsity is of the dense model's weights.
    config = config.model_copy(update={"unit": "weight", "pool": None})
    weights = {n: state_of(model)[n].clone() for n in layout.prunable}
    scores = {n: w.abs() for n, w in weights.items()}
    alive = full_masks(weights, layout.prunable)
    masks = chosen(scores, Wanted(0.9, "global"), config, layout, alive, weights)
    assert abs(count_kept(masks) - 0.1 * layout.whole) < 1
    assert all(masks[n].shape == layout.shapes[n] for n in layout.prunable)


def test_what_is_left_of_a_cut_is_what_was_there_before(config):
    dense = dense_model(config)
    before = {n: t.clone() for n, t in state_of(dense).items()}
    layout = layout_after(config, dense, (CUT,))
    left = layout.from_origin(before)
    assert all(torch.equal(t, left[n]) for n, t in state_of(dense).items())
    again = layout.from_origin(layout.in_origin(left))
    assert all(torch.equal(t, again[n]) for n, t in left.items())


def test_patterns_may_name_what_is_gone():
    pattern = "model.layers.0.mlp.*"
    config = tiny(task="shakespeare", clients=2, cohort=2, exclude=(pattern,))
    model, layout = shaped(config, (Edit("head", "model.layers.1.self_attn", ()),))
    assert not any(name.startswith("model.layers.0.mlp") for name in layout.prunable)
    assert not any("layers.1.self_attn" in name for name, _ in model.named_parameters())


def test_an_edit_that_does_not_fit_is_named(config):
    with pytest.raises(ValueError, match=r"model\.layers\.7"):
        shaped(config, (Edit("head", "model.layers.7.self_attn", (0,)),))


@pytest.mark.parametrize("schedule", ["adaptive", "cubic"])
def test_a_sparsity_that_units_do_not_reach_is_refused_with_what_they_do(schedule):
    keys = {"unit": "channel", "schedule": schedule}
    config = tiny(**keys, sparsity=0.9)
    words = r"^sparsity=0\.9: by magnitude, .*units and floors allow \d+; allowed: 0 to 0\.\d+$"
    with pytest.raises(ValueError, match=words) as refused:
        layout_for(config, dense_model(config))
    most = float(str(refused.value).rsplit(" ", 1)[1])
    assert 0.4 < most < 0.9
    nearest = tiny(**keys, sparsity=most)
    layout_for(nearest, dense_model(nearest))
