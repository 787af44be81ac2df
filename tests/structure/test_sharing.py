import copy

import pytest
import torch
from families import family
from torch import nn

from fedprune.structure.edits import Edit, from_json, to_json
from fedprune.structure.layout import layout_of
from fedprune.structure.surgery import share_weight
from fedprune.tensors.models import state_of


def test_a_shared_weight_is_one_tensor_under_its_first_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    first = model[0].weight
    share_weight(model, Edit("share", "2", like="0"))
    assert list(state_of(model)) == ["0.weight", "0.bias", "2.bias"]
    assert layout_of(model).prunable == ("0.weight",)
    assert model[2].weight is first
    model(torch.ones(1, 3)).sum().backward()
    assert first.grad is not None


def test_layers_of_other_kinds_or_shapes_do_not_share():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 4))
    for path, like in [("0", "1"), ("2", "9"), ("2", "0")]:
        with pytest.raises(ValueError, match=f"share '{path}' with '{like}'"):
            share_weight(model, Edit("share", path, like=like))


def test_what_is_cut_from_one_would_be_missing_in_the_other_so_there_are_no_units():
    model = copy.deepcopy(family("llama").model)
    paths = [f"model.layers.{i}.mlp.up_proj" for i in (0, 1)]
    share_weight(model, Edit("share", paths[1], like=paths[0]))
    groups = layout_of(model, output=("lm_head",)).structure.groups
    assert [g.kind for g in groups] == ["head", "head"]


def test_edits_come_back_from_their_line():
    edits = (Edit("head", "a.b", (1, 4)), Edit("share", "c", (), "a.b"), Edit("neuron", "d"))
    assert from_json(to_json(edits)) == edits
    assert from_json(to_json(())) == ()


@pytest.mark.parametrize("text", ['[{"kind": "head"}]', '[{"kind": "a", "kept": 3}]', "[1]"])
def test_what_is_no_list_of_edits_is_refused(text):
    with pytest.raises(ValueError, match="no list of edits"):
        from_json(text)
