import pytest
import torch
from specimens import FAMILIES, built
from torch import nn

from fedprune.structure.layers import (
    as_output,
    groups,
    input_rows,
    layers_of,
    output_rows,
    watching,
)

LAYERS = {
    "linear": (nn.Linear(5, 3), (2, 4, 6, 5)),
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 7, 6)),
    "padded": (nn.Conv2d(3, 4, (3, 2), padding=(1, 2), stride=(2, 1)), (2, 3, 7, 6)),
    "same": (nn.Conv2d(3, 4, (3, 4), padding="same"), (2, 3, 7, 6)),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid", dilation=2), (2, 3, 7, 6)),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 7, 6)),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=(2, 1), stride=2), (2, 3, 8, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "line": (nn.Conv1d(3, 4, 5, padding=2, stride=3), (2, 3, 11)),
    "space": (nn.Conv3d(2, 3, (2, 3, 1), padding=(0, 1, 0)), (2, 2, 4, 5, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_times_the_matrix_are_what_the_layer_gives(kind):
    layer, shape = LAYERS[kind]
    gen = torch.Generator().manual_seed(0)
    x, layer = torch.randn(shape, generator=gen).double(), layer.double()
    rows = input_rows(layer, x)
    matrices = layer.weight.reshape(groups(layer), -1, rows.shape[-1])
    out = torch.einsum("blgc,goc->blgo", rows, matrices).flatten(2) + layer.bias
    expected = layer(x)
    assert torch.allclose(output_rows(layer, expected), out, atol=1e-12)
    assert torch.allclose(as_output(layer, out, expected.shape), expected, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_prunable_weight_has_its_layer(family):
    s = built(family)
    found = layers_of(s.model, s.layout.prunable)
    assert list(found) == list(s.layout.prunable)
    for name, layers in found.items():
        assert [layer.weight is s.model.get_parameter(name) for layer in layers] == [True]


def test_tied_layers_share_a_weight_and_attention_uses_its_output_without_the_layer():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert layers_of(tied, ["0.weight"]) == {"0.weight": [tied[0], tied[1]]}
    attention = nn.MultiheadAttention(4, 2)
    names = ["in_proj_weight", "out_proj.weight"]
    assert layers_of(attention, names) == {name: [] for name in names}


def test_watching_sees_every_call_and_may_replace_the_output():
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    x = torch.ones(1, 2)

    def note(name, layer, given, out):
        seen.append((name, layer, given, out))
        return torch.full_like(out, 7.0)

    with watching({"w": [model[0]]}, note):
        assert model(x).tolist() == [[7.0, 7.0]]
        model[0](input=x)
    assert [(name, layer, given) for name, layer, given, _ in seen] == [("w", model[0], x)] * 2
    model(x)
    assert len(seen) == 2
