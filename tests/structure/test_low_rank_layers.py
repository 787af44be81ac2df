import copy

import numpy as np
import pytest
import torch
from families import FACTS, family, forward, laid_out
from torch import nn

from fedprune.structure.edits import Edit
from fedprune.structure.layout import layout_of
from fedprune.structure.low_rank_layers import Factored, factor_layer, root_of, truncated
from fedprune.structure.matrices import matrix_of
from fedprune.structure.surgery import reshaped

GEN = torch.Generator().manual_seed(3)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GEN, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_without_moments_it_is_the_truncated_svd(shape):
    w = drawn(*shape)
    u, s, v = np.linalg.svd(w.numpy(), full_matrices=False)
    for rank in (1, 3, 5):
        left, right = truncated(w, rank)
        assert (left.shape, right.shape) == ((shape[0], rank), (rank, shape[1]))
        oracle = u[:, :rank] * s[:rank] @ v[:rank]
        assert np.abs((left @ right).numpy() - oracle).max() < 1e-12
        assert torch.allclose(left.norm(dim=0), right.norm(dim=1))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_with_moments_no_matrix_of_the_rank_is_nearer_on_the_inputs(shape):
    w, x = drawn(*shape), drawn(shape[1], 40) * torch.logspace(-2, 1, shape[1]).double()[:, None]
    s = np.linalg.svd((w @ x).numpy(), compute_uv=False)
    for rank in (1, 2, 4):
        left, right = truncated(w, rank, x @ x.t())
        error = float(((w - left @ right) @ x).norm())
        assert error == pytest.approx(float(np.sqrt((s[rank:] ** 2).sum())), rel=1e-6)
        plain = truncated(w, rank)
        assert error < 0.99 * float(((w - plain[0] @ plain[1]) @ x).norm())


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_the_full_rank_is_the_matrix_even_where_no_input_went(shape):
    w, x = drawn(*shape), drawn(shape[1], 3)
    x[0] = 0.0
    for moments in (None, x @ x.t(), torch.zeros(shape[1], shape[1])):
        left, right = truncated(w, 5, moments)
        assert torch.allclose(left @ right, w, atol=1e-9)
    left, right = truncated(w, 8)
    assert (left.shape[1], right.shape[0]) == (8, 8)
    assert torch.allclose(left @ right, w, atol=1e-12)


def test_a_matrix_of_zeros_has_factors_of_zeros():
    left, right = truncated(torch.zeros(3, 4), 2, torch.eye(4))
    assert not (left @ right).any()
    assert torch.isfinite(left).all()


@pytest.mark.parametrize("name", FACTS)
def test_at_full_rank_every_family_says_the_same_and_has_its_structure(name):
    before = family(name)
    model = copy.deepcopy(before.model)
    paths = [tensor.removesuffix(".weight") for tensor in before.layout.prunable]
    for path in paths:
        factor_layer(model, Edit("rank", path, (min(matrix_of(model.get_submodule(path)).shape),)))
    assert torch.allclose(forward(name, model), before.logits({}), atol=1e-9)
    layout = laid_out(name, model)
    assert layout.prunable == tuple(f"{path}.{i}.weight" for path in paths for i in (0, 1))
    assert set(layout.kinds.values()) == {"linear", "conv"} if name == "vit" else {"linear"}
    _same_units(before.layout.structure.groups, layout.structure.groups)
    assert len(layout.structure.blocks) == len(before.layout.structure.blocks)


def _same_units(before: tuple, after: tuple) -> None:
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert (old.path, old.kind, len(old.parts)) == (new.path, new.kind, len(new.parts))
        for was, part in zip(old.parts, new.parts, strict=True):
            factor_of = {"row": ".1.weight", "column": ".0.weight"}[part.axis]
            assert part.tensor == was.tensor.removesuffix(".weight") + factor_of
            assert torch.equal(part.index, was.index)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_convolution_becomes_one_with_fewer_channels_and_one_of_points(padding_mode):
    conv = nn.Conv2d(3, 8, (3, 2), stride=2, padding=1, padding_mode=padding_mode).double()
    model, x = nn.Sequential(conv, nn.ReLU()), drawn(2, 3, 9, 8)
    expected, before = model(x), torch.get_rng_state()
    factor_layer(model, Edit("rank", "0", (8,)))
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn"
    assert torch.allclose(model(x), expected, atol=1e-10)
    assert [tuple(p.shape) for p in model.parameters()] == [(8,), (8, 3, 3, 2), (8, 8, 1, 1)]
    assert set(layout_of(model).kinds.values()) == {"conv"}


def test_bias_mode_type_and_what_is_frozen_stay():
    model = nn.Sequential(nn.Linear(4, 5)).bfloat16().eval().requires_grad_(False)
    bias, before = model[0].bias, torch.get_rng_state()
    factor_layer(model, Edit("rank", "0", (2,)))
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn"
    assert isinstance(model[0], Factored)
    assert model[0].bias is bias
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} == {model[0].weight.dtype}
    assert not any(m.training for m in model.modules())
    assert list(model.state_dict()) == ["0.bias", "0.0.weight", "0.1.weight"]


def test_what_cannot_be_factored_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Conv2d(4, 4, 3, groups=2))
    model[2].weight = model[0].weight
    for path, kept in [("9", (2,)), ("1", (2,)), ("", (2,)), ("3", (2,)), ("0", (2,)), ("0", (0,))]:
        with pytest.raises(ValueError, match=f"rank of '{path}'"):
            factor_layer(model, Edit("rank", path, kept))


def test_a_factor_is_not_factored_again_and_again():
    model = nn.Sequential(nn.Linear(4, 4))
    edits = [Edit("rank", "0" + ".0" * depth, (4,)) for depth in range(30)]
    with pytest.raises(ValueError, match="a factor, no layer of the dense model"):
        reshaped(model, edits)


def test_moments_that_are_singular_but_for_rounding_have_a_root():
    x = drawn(6, 2)
    moments = (x @ x.t()).float()
    moments -= 1e-6 * torch.eye(6)
    root = root_of(moments)
    assert torch.allclose(root @ root.t(), moments.double(), atol=1e-4)
