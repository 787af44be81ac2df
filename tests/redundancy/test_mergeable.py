import copy
from typing import Any

import pytest
import torch
from torch import nn

from fedprune.redundancy.mergeable import chains, fold_norm, foldable_norms
from fedprune.structure.edits import Edit
from fedprune.structure.low_rank_layers import factor_layer
from tests.families import family, forward
from tests.modules import module


def run_of(x: torch.Tensor):
    return lambda model: model(x.to(next(model.parameters()).dtype))


def skipping(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear map whose output goes into another one and around it."""
    y = self.first(self.norm(x))
    return y + self.second(y)


def test_linear_maps_in_a_row_are_a_chain_whatever_does_nothing_between_them():
    model = nn.Sequential(
        nn.Linear(6, 3), nn.Dropout(), nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)
    ).eval()
    found = chains(model, run_of(torch.ones(2, 6)))
    assert [(c.first, c.second, c.now, c.product) for c in found] == [("0", "2", 36, 36)]


def test_what_something_else_reads_too_is_no_chain():
    layers = {"norm": nn.LayerNorm(4), "first": nn.Linear(4, 4), "second": nn.Linear(4, 4)}
    model = module(skipping, **layers)
    assert chains(model, run_of(torch.randn(2, 4, generator=torch.Generator()))) == []
    assert [f.norm for f in foldable_norms(model, run_of(torch.ones(2, 4)))] == ["norm"]


def test_factors_are_a_chain():
    model = copy.deepcopy(family("gpt2").model)
    path = "transformer.h.1.mlp.c_fc"
    factor_layer(model, Edit("rank", path, (3,)))
    found = chains(model, lambda m: forward("gpt2", m))
    assert [(c.first, c.second) for c in found] == [(f"{path}.0", f"{path}.1")]
    assert (found[0].now, found[0].product) == (3 * 12 + 3 * 10, 120)


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("gpt2", {"ln_1": ["c_attn"], "ln_2": ["c_fc"]}),
        ("llama", {"input": ["k", "q", "v"], "post_attention": ["gate", "up"]}),
        ("bert", {"LayerNorm": ["dense"]}),  # behind the last block, where no residual begins
    ],
)
def test_norms_before_layers_fold_and_those_on_the_way_of_residuals_do_not(name, norms):
    found = foldable_norms(family(name).model, lambda m: forward(name, m))
    blocks = [f for f in found if ".1." in f.norm]
    ends = {
        f.norm.split(".")[-1].removesuffix("_layernorm"): sorted(
            r.split(".")[-1].removesuffix("_proj") for r in f.readers
        )
        for f in blocks
    }
    assert ends == norms


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_folding_changes_nothing_that_is_said(name):
    model = copy.deepcopy(family(name).model)
    said = forward(name, model)
    found = foldable_norms(model, lambda m: forward(name, m))
    assert found
    modules = dict(model.named_modules())
    for each in found:
        fold_norm(modules[each.norm], [modules[path] for path in each.readers])
        assert bool((modules[each.norm].weight == 1).all())
    assert torch.allclose(forward(name, model), said, atol=1e-9)


def test_a_shift_needs_a_bias_to_go_into():
    norm, linear = nn.LayerNorm(3), nn.Linear(3, 3, bias=False)
    fold_norm(norm, [linear])
    norm.bias.data.fill_(0.5)
    with pytest.raises(ValueError, match="no bias"):
        fold_norm(norm, [linear])
