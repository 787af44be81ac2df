"""What is prunable, what stays dense and as what, and lines that say what is allowed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fedprune.structure.layout import layout_of

nn_utils, parametrizations = nn.utils, nn.utils.parametrizations


def _parts() -> nn.ModuleDict:
    parts = nn.ModuleDict(
        {
            "table": nn.Embedding(3, 2),
            "rnn": nn.LSTM(2, 2),
            "turn": nn.ConvTranspose1d(2, 2, 1),
            "attend": nn.MultiheadAttention(2, 1),
            "still": nn.Linear(2, 2),
            "out": nn.Linear(2, 2, bias=False),
            "layer": nn.Linear(2, 2, bias=False),
            "normed": parametrizations.weight_norm(nn.Linear(2, 2, bias=False)),
            "void": nn.Linear(0, 2, bias=False),
        }
    )
    parts["still"].weight.requires_grad_(False)
    parts.experts = nn.Parameter(torch.ones(2, 2, 2))
    parts.loose = nn.Parameter(torch.ones(2, 2))
    parts.number = nn.Parameter(torch.tensor(1.0))
    return parts


def test_every_parameter_that_stays_says_what_it_is():
    model = _parts()
    layout = layout_of(model, output=("out",), exclude=("normed.*",))
    assert layout.prunable == ("attend.out_proj.weight", "layer.weight")
    assert tuple(layout.stays) == layout.spared
    kinds = {name: kind for name, kind in layout.stays.items() if "bias" not in name}
    originals = {f"normed.parametrizations.weight.original{i}": "excluded" for i in (0, 1)}
    assert kinds == {
        "experts": "stacks of matrices (experts and the like)", "loose": "other matrices",
        "number": "biases, norms and other vectors", "table.weight": "embeddings",
        "rnn.weight_ih_l0": "recurrent weights", "rnn.weight_hh_l0": "recurrent weights",
        "turn.weight": "transposed convolutions",
        "attend.in_proj_weight": "fused attention inputs", "still.weight": "frozen layers",
        "out.weight": "head of output", "void.weight": "empty", **originals,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (lambda m: nn_utils.weight_norm(m), "weight_norm"),
        (lambda m: nn_utils.spectral_norm(m), "spectral_norm"),
        (lambda m: prune.l1_unstructured(m, "weight", 1), "torch.nn.utils.prune"),
        (parametrizations.weight_norm, "parametrised by WeightNorm"),
        (parametrizations.spectral_norm, "parametrised by SpectralNorm"),
        (parametrizations.orthogonal, "parametrised by Orthogonal"),
        (
            lambda m: nn_utils.parametrize.register_parametrization(m, "weight", nn.Softplus()),
            "parametrised by Softplus",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("layer", [nn.Linear, lambda i, o: nn.Conv1d(i, o, 1)])
def test_a_computed_weight_is_refused_by_name_or_left_dense(change, by, layer):

    body = layer(3, 4)
    model = nn.Sequential(change(body) or body, nn.Linear(4, 2))
    with pytest.raises(ValueError, match=rf"model: the weight of 0 is computed \({by}\).*allowed:"):
        layout_of(model)
    for spared in ({"exclude": ("0.*",)}, {"output": ("0",)}, {}):
        body.requires_grad_(bool(spared))
        if by.startswith("parametrised"):
            assert layout_of(model, **spared).prunable == ("1.weight",)
        else:  # a hook sets it, and such a model cannot be copied
            with pytest.raises(ValueError, match=r"allowed: .*torch.nn.utils.parametrizations"):
                layout_of(model, **spared)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"include": ("still.weight",)}, "still.weight is frozen"),
        ({"include": ("*ill.w*",)}, "still.weight is frozen"),
        ({"include": ("layr.weight",)}, r"include='layr.weight': .*such as layer.weight"),
        ({"exclude": ("*LAYER*",)}, r"exclude='\*LAYER\*': .*such as layer.weight"),
        ({"output": ("outt",)}, r"its output names 'outt', no module of the model; allowed: out"),
        ({"exclude": ("normed.*", "layer.*", "out*", "attend*")}, "nothing is left to prune of 3"),
    ],
)
def test_what_cannot_be_is_one_line_with_what_can(options, said):
    rest = {"exclude": ("normed.*",), **options}
    with pytest.raises(ValueError, match=said) as caught:
        layout_of(_parts(), **rest)
    assert "allowed:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_with_nothing_prunable_the_kinds_that_there_are_are_named():
    model = nn.ModuleDict({"rnn": nn.LSTM(2, 3), "table": nn.Embedding(4, 2)})
    with pytest.raises(ValueError, match=r"recurrent weights \(4\), embeddings \(1\)") as caught:
        layout_of(model)
    assert "--include 'rnn.weight_ih_l0'" in str(caught.value)
    assert layout_of(model, include=("rnn.weight_ih_l0",)).kinds == {"rnn.weight_ih_l0": "other"}


def test_a_head_is_found_under_each_of_its_names():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "last": nn.Linear(2, 2)})
    model["head"] = model["last"]
    assert layout_of(model, output=("head",)).prunable == ("body.weight",)
