import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedprune.export.measure import dense_values, size_of
from fedprune.export.offered import PRECISIONS
from fedprune.export.quantise import (
    IntegerLinear,
    Precision,
    grouped_codes,
    quantisable,
    quantise,
    restored,
)
from fedprune.structure.edits import Edit
from fedprune.structure.low_rank_layers import factor_layer
from tests.families import EXPERTS, OUTPUT, TEXTS, family, forward


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    group=st.sampled_from([2, 4, 16, 64]),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    shift=st.sampled_from([0.0, 3.0, -3.0]),
    size=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_what_comes_back_is_at_most_half_a_scale_away(
    rows, columns, group, bits, symmetric, shift, size
):
    matrix = (normal(rows, columns) + shift) * size
    matrix[:, ::3] = 0.0
    codes = grouped_codes(matrix, bits, group, symmetric=symmetric)
    back = restored(codes, bits, columns)
    bound = codes.scale.float().repeat_interleave(group, 1)[:, :columns]
    error = (back - matrix).abs()
    assert (error <= bound * (0.5 if symmetric else 1.0) * (1 + 1e-5)).all()
    assert not back[:, ::3].any(), "what was pruned is exactly 0.0"
    # A scale is what it takes and not more: the largest weight over the largest code.
    spread = (matrix.max().clamp(min=0) - matrix.min().clamp(max=0)) / (2**bits - 2)
    assert (bound <= 2 * spread * 1.01)[matrix != 0].all()
    assert codes.packed.numel() == rows * -(-columns // group) * group * bits // 8


def test_codes_by_hand():
    codes = grouped_codes(torch.tensor([[-7.0, 0.0, 3.4, 7.0]]), 4, 4, symmetric=True)
    assert (codes.scale.item(), codes.zero.item()) == (1.0, 8)
    assert codes.packed.view(torch.uint8).tolist() == [[1 | 8 << 4, 11 | 15 << 4]]
    assert restored(codes, 4, 4).tolist() == [[-7.0, 0.0, 3.0, 7.0]]
    codes = grouped_codes(torch.tensor([[0.0, 15.0, 1.4, 8.0]]), 4, 4, symmetric=False)
    assert restored(codes, 4, 4).tolist() == [[0.0, 15.0, 1.0, 8.0]]


def test_integers_multiply_like_the_floats_they_stand_for():
    layer = nn.Linear(37, 11)
    small = IntegerLinear(layer)
    inputs = normal(2, 5, 37)
    inputs[0, 0] = 0.0
    step = inputs.abs().amax(-1, keepdim=True) / 127
    rounded = torch.where(step > 0, (inputs / step).round() * step, 0.0)
    expected = nn.functional.linear(rounded.double(), small.dense().double(), layer.bias.double())
    assert torch.allclose(small(inputs).double(), expected, atol=1e-5)
    assert (small(inputs) - layer(inputs)).abs().max() < 0.05
    assert small(inputs.double()).dtype == torch.float64


def quantised(name: str, kind: str, **more):
    known = family(name)
    model = copy.deepcopy(known.model).float()
    for weight in (p for n, p in model.named_parameters() if n in known.layout.prunable):
        weight.data[:, ::2] = 0.0
    before = copy.deepcopy(model)
    paths = quantisable(model, (OUTPUT.get(name, "lm_head"),))
    quantise(model, Precision(kind, **more), paths)
    return before, model, paths


@pytest.mark.sampled(16)
@pytest.mark.parametrize("kind", PRECISIONS)
@pytest.mark.parametrize("name", TEXTS)
def test_every_family_runs_quantised_and_what_was_pruned_stays_zero(name, kind):
    before, model, paths = quantised(name, kind, group=4)
    layout = family(name).layout
    assert {f"{path}.weight" for path in paths} >= set(layout.prunable)
    values = dense_values(model)
    for weight in layout.prunable:
        old = before.get_parameter(weight)
        turned = old.t() if layout.kinds[weight] == "conv1d" else old
        assert not values[weight][turned == 0].any(), weight
    said, meant = forward(name, model), forward(name, before)
    off = (said - meant).norm() / meant.norm()
    # A token that goes to another expert, for a hair of its router's input, hears another.
    assert off < (0.5 if kind == "int4" or name in EXPERTS else 0.1)
    assert size_of(model).parameters == size_of(before).parameters
    assert size_of(model).bytes_held < size_of(before).bytes_held


@pytest.mark.parametrize(("kind", "bytes_each"), [("int8", 1.03125), ("int4", 0.53125)])
def test_memory_really_shrinks(kind, bytes_each):
    model = nn.Sequential(nn.Linear(512, 256, bias=False))
    quantise(model, Precision(kind, group=64), ["0"])
    assert size_of(model).bytes_held == 512 * 256 * bytes_each


def test_weights_that_two_layers_share_are_held_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    quantise(model, Precision("int4"), quantisable(model))
    assert model[1].weight is model[0].weight
    assert size_of(model).parameters == 64 + 16


def test_factors_are_quantised_one_by_one():
    model = copy.deepcopy(family("t5").model).float()
    path = "decoder.block.1.layer.2.DenseReluDense.wo"
    factor_layer(model, Edit("rank", path, (2,)))
    before = forward("t5", model)
    paths = quantisable(model, ("lm_head",))
    quantise(model, Precision("int8"), paths)
    assert {f"{path}.0", f"{path}.1"} <= set(paths)
    assert (forward("t5", model) - before).norm() < 0.1 * before.norm()


def test_heads_and_what_is_tied_to_embeddings_are_left_alone():
    for name in ("gpt2", "t5"):  # both tie their head
        paths = quantisable(family(name).model)
        assert paths
        assert "lm_head" not in paths
    assert "lm_head" in quantisable(family("llama").model)
    assert "lm_head" not in quantisable(family("llama").model, ("lm_head",))


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(ValueError, match="no linear layer to quantise in Conv2d"):
        quantise(nn.Conv2d(1, 1, 1), Precision("int8"), quantisable(nn.Conv2d(1, 1, 1)))
    with pytest.raises(ValueError, match="group=3: two codes make a byte"):
        quantise(nn.Sequential(nn.Linear(4, 4)), Precision("int4", group=3), ["0"])
