"""Kinds are told by type and structure: a class's name decides nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modules import module
from torch import Tensor, nn

from fedprune.export.quantise import quantisable
from fedprune.redundancy.mergeable import foldable_norms
from fedprune.structure.edits import Edit
from fedprune.structure.groups import structure_of
from fedprune.structure.layer_kinds import LAYERS, family_name, is_layer, is_transposed, plain_kind
from fedprune.structure.layout import layout_of
from fedprune.structure.low_rank_layers import factor_layer


def named(name: str, base: type[nn.Module], **own: Any) -> Any:
    """A user's subclass of that name."""
    return type(name, (base,), own)


def _double(self: Any, x: Tensor) -> Tensor:
    return 2 * nn.functional.linear(x, self.weight, self.bias)


def _net(kinds: dict[str, Any]) -> nn.Module:
    k = {name: kinds.get(name, getattr(nn, name)) for name in ("Conv1d", "Conv2d", "Linear")}
    layers = [k["Conv2d"](2, 6, 3, padding=1), nn.ReLU(), k["Conv2d"](6, 4, 3, padding=1)]
    rest = [nn.Flatten(2), k["Conv1d"](4, 5, 1), nn.Flatten(), k["Linear"](45, 4)]
    return nn.Sequential(*layers, *rest, nn.Linear(4, 2))


@pytest.mark.parametrize(
    "kinds",
    [
        {"Conv1d": named("Conv1D", nn.Conv1d)},
        {"Conv2d": named("Embedding", nn.Conv2d)},
        {"Linear": named("LayerNorm", nn.Linear)},
        {"Linear": named("BertAttention", nn.Linear), "Conv2d": named("T5Stack", nn.Conv2d)},
    ],
)
def test_a_subclass_is_laid_out_as_what_it_is_a_subclass_of(kinds):
    torch.manual_seed(0)
    own = layout_of(_net(kinds), output=("7",))
    assert repr(own) == repr(layout_of(_net({}), output=("7",)))
    assert any(group.kind == "channel" for group in own.structure.groups)


def test_names_of_known_classes_do_not_make_a_layer_a_table_or_a_family():
    # A user's matrix, no table; and an attention with nothing of BERT's in it.
    table, attention = named("Embedding", nn.Module)(), named("BertAttention", nn.Module)()
    table.weight, attention.inner = nn.Parameter(torch.ones(3, 3)), nn.Linear(3, 3)
    model = nn.Sequential(table, attention)
    assert not is_layer(named("Linear", nn.Module)())
    layout = layout_of(model)
    assert layout.prunable == ("1.inner.weight",)
    assert layout.stays["0.weight"] == "other matrices"
    assert layout.structure.groups == ()


def test_gpt2s_own_conv1d_is_in_out_and_so_is_its_subclass():
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(Conv1D(4, 3), named("Projection", Conv1D)(5, 4), nn.Conv1d(4, 4, 1))
    assert [is_transposed(m) for m in model] == [True, True, False]
    assert list(layout_of(model).kinds.values()) == ["conv1d", "conv1d", "conv"]


def test_a_subclass_with_a_forward_of_its_own_is_pruned_but_not_replaced():
    doubled, plain = named("Double", nn.Linear, forward=_double), named("Plain", nn.Linear)
    model = nn.Sequential(doubled(4, 4), plain(4, 4), nn.Linear(4, 2))
    assert layout_of(model).prunable == ("0.weight", "1.weight", "2.weight")
    assert [plain_kind(m, LAYERS) for m in model] == [None, nn.Linear, nn.Linear]
    assert quantisable(model) == ["1", "2"]
    with pytest.raises(ValueError, match="computes as its kind"):
        factor_layer(model, Edit("rank", "0", (2,)))
    x = torch.randn(5, 4)
    before = model[1](x)
    factor_layer(model, Edit("rank", "1", (4,)))
    assert torch.allclose(model[1](x), before, atol=1e-5)


def test_a_weight_that_is_used_without_its_layer_is_not_quantised():
    assert quantisable(nn.MultiheadAttention(4, 2)) == []


def test_factors_of_a_users_convolution_are_convolutions():
    class Same(nn.Conv2d):
        """Constructed in a way of its own."""

        def __init__(self, channels: int) -> None:
            super().__init__(channels, channels, 3, padding=1)

    model, x = nn.Sequential(Same(4)), torch.randn(2, 4, 5, 5)
    before = model(x)
    factor_layer(model, Edit("rank", "0", (4,)))
    assert torch.allclose(model(x), before, atol=1e-5)


def test_a_family_is_known_by_whose_forward_runs():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    settings = LlamaConfig(hidden_size=4, intermediate_size=6, num_attention_heads=2)
    inherited = named("MyMLP", LlamaMLP)(settings)
    changed = named("LlamaMLP", LlamaMLP, forward=_double)(settings)
    names = [f"{path}_proj.weight" for path in ("gate", "up", "down")]
    assert [family_name(m) for m in (inherited, changed)] == ["LlamaMLP", ""]
    assert [group.kind for group in structure_of(inherited, names).groups] == ["neuron"]
    assert structure_of(changed, names).groups == ()


def scaled(self: Any, x: Tensor) -> Tensor:
    """A norm by another name: each row by its largest number, then a scale."""
    return x / x.abs().amax(-1, keepdim=True) * self.weight


def test_norms_are_found_by_shape_and_proven_by_folding():
    scale = module(scaled, weight=nn.Parameter(torch.ones(4)))
    model = nn.Sequential(scale, nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 2))
    found = foldable_norms(model, lambda m: m(torch.linspace(-1, 1, 12).view(3, 4).to(m[1].weight)))
    assert [norm.norm for norm in found] == ["0"], "a PReLU has a scale too, but does not fold"
