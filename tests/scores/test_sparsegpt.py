import math

import pytest
import torch
from specimens import FAMILIES, built, taken
from torch import Tensor

from fedprune.scores import sparsegpt
from fedprune.scores.catalog import SCORES
from fedprune.scores.inputs import inputs_of, rows_of
from fedprune.scores.score import Evidence
from fedprune.scores.sparsegpt import obs, prune_rows, step
from fedprune.selection.select import select
from fedprune.structure.layout import Layout, as_rows


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs whose channels say much about each other, of unequal size."""
    gen = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=gen).double()
    mix += 3.0 * torch.randn(columns, 2, generator=gen).double() @ torch.ones(2, columns).double()
    return torch.randn(rows, columns, generator=gen).double() @ mix.t()


def matrix(out: int, columns: int) -> Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(7)).double()


def error(x: Tensor, w: Tensor, new: Tensor) -> float:
    return float((x @ (w - new).t()).square().sum())


def damped(hessian: Tensor) -> Tensor:
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)).double()


def best(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
    """The least squares optimum of every row's remaining weights."""
    found = torch.zeros_like(w)
    for i, kept in enumerate(mask):
        found[i, kept] = torch.linalg.lstsq(x[:, kept], x @ w[i]).solution
    return found


def _evidence(w: Tensor, x: Tensor, alive: Tensor | None = None, kind: str = "linear") -> Evidence:
    layout = Layout({"w": w.shape}, ("w",), (), {}, {"w": kind})
    masks = {"w": torch.ones_like(w, dtype=torch.bool) if alive is None else alive}
    sums = {inputs_of("w"): x.t() @ x, rows_of("w"): torch.tensor([float(len(x))])}
    return Evidence(sums, 1.0, {"w": w}, masks, layout, torch.Generator())


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("block", [8, 128])
def test_the_error_is_below_that_of_magnitude_and_above_the_optimum(sparsity, block, monkeypatch):
    monkeypatch.setattr(sparsegpt, "BLOCK", block)
    x, w = correlated(300, 40), matrix(24, 40)
    alive, more = torch.ones_like(w, dtype=torch.bool), round(sparsity * w.numel())
    mask, new = prune_rows(w, alive, x.t() @ x, more)
    assert int((~mask).sum()) == more
    assert not new[~mask].any()
    by_size = select({"": w.abs()}, sparsity, floor=0)[""]
    optimum = error(x, w, best(x, w, mask))
    assert optimum <= error(x, w, new) * (1 + 1e-9)
    assert error(x, w, new) < 0.6 * error(x, w, w * by_size)
    assert error(x, w, new) < 0.6 * error(x, w, w * mask), "the update is worth something"


def test_independent_inputs_need_no_update_and_rank_by_size_times_norm():
    """With a diagonal Hessian the method is |w|·‖x‖ and leaves the rest alone."""
    w = matrix(6, 16)
    scale = torch.linspace(0.5, 4.0, 16).double()
    mask, new = prune_rows(w, torch.ones_like(w, dtype=torch.bool), torch.diag(scale**2), 48)
    norms = damped(torch.diag(scale**2)).diagonal().sqrt()
    assert torch.equal(mask, select({"": w.abs() * norms}, 0.5, floor=0)[""])
    assert torch.allclose(new, w * mask, atol=1e-12)


def test_one_weight_goes_and_the_later_ones_make_up_for_it_as_in_optimal_brain_surgeon():
    """With only the first column removed, the update is OBS's, -w_0/[H⁻¹]_00 · H⁻¹_0."""
    x, w = correlated(200, 6), matrix(1, 6)
    w[0, 0] = 1e-9 * w[0, 0]  # nothing is cheaper
    mask, new = prune_rows(w, torch.ones_like(w, dtype=torch.bool), x.t() @ x, 1)
    assert mask.tolist() == [[False] + [True] * 5]
    inverse = damped(x.t() @ x).inverse()
    expected = w - w[:, :1] / inverse[0, 0] * inverse[0]
    assert torch.allclose(new[0, 1:], expected[0, 1:], rtol=1e-6)
    assert new[0, 0] == 0.0


@pytest.mark.parametrize("block", [4, 6, 128])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 5), (4, 8)])
def test_n_of_m_along_the_inputs(n, m, block, monkeypatch):
    monkeypatch.setattr(sparsegpt, "BLOCK", block)
    x, w = correlated(200, 42), matrix(9, 42)
    evidence = _evidence(w, x)
    masks, weights = step(evidence, {"w": 1 - n / m}, (n, m))
    whole = 42 // m * m
    kept = masks["w"][:, :whole].unflatten(1, (-1, m)).sum(-1)
    assert kept.unique().tolist() == [n]
    last = 42 - whole
    assert masks["w"][:, whole:].sum(1).unique().tolist() == [last - last * (m - n) // m]
    assert not weights["w"][~masks["w"]].any()
    by_size = w.abs()[:, :whole].unflatten(1, (-1, m)).topk(n).indices
    dense = torch.ones_like(masks["w"])
    dense[:, :whole] = torch.zeros(9, whole // m, m).scatter(2, by_size, 1.0).bool().flatten(1)
    assert error(x, w, weights["w"]) < error(x, w, w * dense)


@pytest.mark.parametrize("block", [4, 128])
@pytest.mark.parametrize("inputs", [8, 6])
def test_n_of_m_of_a_convolution_is_that_of_its_columns_turned(inputs, block, monkeypatch):
    """Channels in groups at each place of the kernel: place by place it is a linear layer's."""
    monkeypatch.setattr(sparsegpt, "BLOCK", block)
    x, w = correlated(200, inputs * 4), matrix(5, inputs * 4).view(5, inputs, 2, 2)
    masks, weights = step(_evidence(w, x, kind="conv"), {"w": 0.5}, (2, 4))
    place_by_place = masks["w"].permute(0, 2, 3, 1)
    for part, left in zip(place_by_place.split(4, -1), (2, 2 if inputs == 8 else 1), strict=True):
        assert part.sum(-1).unique().tolist() == [left]
    assert not weights["w"][~masks["w"]].any()
    if inputs == 8:
        turned = x.view(200, inputs, 4).transpose(1, 2).reshape(200, -1)
        matrix_ = w.permute(0, 2, 3, 1).reshape(5, -1)
        as_linear = step(_evidence(matrix_, turned), {"w": 0.5}, (2, 4))
        assert torch.equal(place_by_place.reshape(5, -1), as_linear[0]["w"])
        got = weights["w"].permute(0, 2, 3, 1).reshape(5, -1)
        assert torch.allclose(got, as_linear[1]["w"], atol=1e-9)


def test_masks_only_shrink_and_counts_are_exact():
    x, w = correlated(200, 30), matrix(11, 30)
    alive, weights = torch.ones_like(w, dtype=torch.bool), w
    for sparsity in (0.1, 0.35, 0.35, 0.2, 0.77):
        masks, found = step(_evidence(weights, x, alive), {"w": sparsity}, None)
        gone = max(math.floor(sparsity * w.numel() + 0.5), int((~alive).sum()))
        assert int((~masks["w"]).sum()) == gone
        assert not (masks["w"] & ~alive).any()
        alive, weights = masks["w"], found["w"]
        assert not weights[~alive].any()


def test_inputs_that_are_always_zero_lose_their_weights_first_and_break_nothing():
    x, w = correlated(100, 12), matrix(4, 12)
    x[:, [2, 7]] = 0.0
    masks, weights = step(_evidence(w, x), {"w": 8 / 48}, None)
    assert not masks["w"][:, [2, 7]].any()
    assert torch.allclose(weights["w"], w * masks["w"]), "nothing had to be made up for"
    assert torch.isfinite(obs(_evidence(w, x))["w"]).all()
    some, kept = step(_evidence(w, x), {"w": 2 / 48}, None)
    assert torch.equal(kept["w"][some["w"]], w[some["w"]])
    assert int((~some["w"]).sum()) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_every_family(family):
    """In the shapes, the type and the orientation of the model, from federated statistics."""
    s, score = built(family), SCORES["sparsegpt"]
    (masks, weights), pooled = (
        step(taken(score, s, parts), dict.fromkeys(s.weights, 0.7), None)
        for parts in (list(s.shards), [s.pooled([0, 1, 2])])
    )
    assert score.step is step
    for name, w in s.weights.items():
        assert masks[name].shape == weights[name].shape == w.shape
        assert weights[name].dtype == w.dtype
        assert int((~masks[name]).sum()) == math.floor(0.7 * w.numel() + 0.5)
        assert not weights[name][~masks[name]].any()
        assert not (masks[name] & ~s.masks[name]).any()
        assert torch.equal(masks[name], pooled[0][name])
        assert torch.allclose(weights[name], pooled[1][name], atol=1e-9)


def test_the_saliency_is_that_of_optimal_brain_surgeon():
    x, w = correlated(100, 8), matrix(3, 8)
    saliency = obs(_evidence(w, x))["w"]
    inverse = damped(x.t() @ x / len(x)).inverse()
    assert torch.allclose(saliency, w.square() / inverse.diagonal(), rtol=1e-6)
    assert as_rows(_evidence(w, x).layout, "w", saliency).shape == (3, 8)
