"""Whatever a client's vector is, it fits the norm or is refused, and nothing else happens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedprune.options.refusal import Refused
from fedprune.privacy.clipping import bounded_sum, clipped, scaled, sensitivity

TYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
ODD = [0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 1e30, -1e30, 1e308, 5e-324, 1e-45, 1e-38]


def norm_of(values: Tensor) -> float:
    """In float64, without overflow."""
    double = values.double()
    most = float(double.abs().max()) if double.numel() else 0.0
    return most * float((double / most).square().sum().sqrt()) if most else 0.0


def generated(rng: np.random.Generator) -> Tensor:
    """An update as none should be, and as many are."""
    size = int(rng.integers(0, 40))
    values = rng.standard_normal(size) * 10.0 ** rng.uniform(-45, 38)
    odd = rng.random(size) < rng.choice([0.0, 0.05, 1.0])
    values[odd] = rng.choice(ODD, int(odd.sum()))
    if rng.random() < 0.1:
        values[:] = 0.0
    whole = rng.integers(-(2**63), 2**63 - 1, size)
    dtype = TYPES[rng.integers(len(TYPES))]
    return torch.from_numpy(values if dtype.is_floating_point else whole).to(dtype)


@pytest.mark.slow
def test_ten_thousand_updates_fit_or_are_refused():
    rng = np.random.default_rng(5)
    fit = refused = 0
    for _ in range(10_000):
        values, norm = generated(rng), float(10.0 ** rng.uniform(-6, 6))
        before = values.clone()
        try:
            out, full = clipped(values, norm), scaled(values, norm)
        except Refused:
            refused += 1
            assert not torch.isfinite(values).all()
            continue
        fit += 1
        assert torch.isfinite(values).all()
        assert out.dtype == full.dtype == torch.float32
        assert out.shape == full.shape == values.shape
        assert norm_of(out) <= norm * (1 + 1e-6)
        size = norm_of(values)
        assert norm_of(full) == pytest.approx(norm if size else 0.0, rel=1e-6)
        if size <= norm * (1 - 1e-9):
            assert torch.equal(out, values.float())
        assert torch.equal(values, before)
    assert fit > 5000
    assert refused > 500


@settings(max_examples=300)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=8),
    st.floats(1e-30, 1e30),
)
def test_what_hypothesis_finds_fits_or_is_refused(values, norm):
    tensor = torch.tensor(values, dtype=torch.float64)
    if not all(map(math.isfinite, values)):
        with pytest.raises(Refused, match="NaN or infinite") as refused:
            clipped(tensor, norm)
        assert refused.value.field == "values"
        return
    assert norm_of(clipped(tensor, norm)) <= norm * (1 + 1e-6)


def test_the_direction_stays_and_shapes_too_in_a_copy_without_a_gradient():
    kept = torch.ones(3, requires_grad=True)
    out = clipped(kept, 10.0)
    assert not out.requires_grad
    out.zero_()
    assert torch.equal(kept.detach(), torch.ones(3))
    values = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert torch.allclose(clipped(values, 1.0), values / 5, rtol=1e-7)
    assert torch.equal(clipped(values, 6.0), values)
    assert torch.allclose(scaled(values, 10.0), values * 2, rtol=1e-7)
    assert torch.equal(clipped(torch.tensor([True, True]), 1.0), torch.full((2,), 0.5**0.5))


def test_complex_numbers_and_norms_out_of_range_are_refused():
    with pytest.raises(Refused, match="not a type of real numbers"):
        clipped(torch.ones(2, dtype=torch.complex64), 1.0)
    for norm in (0.0, -1.0, math.nan, math.inf, 1e31):
        with pytest.raises(ValueError, match="out of range"):
            clipped(torch.ones(2), norm)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_no_pair_of_clipped_vectors_is_further_apart_than_the_sensitivity(signed, sampling):
    rng, most = np.random.default_rng(1), 0.0
    bound = sensitivity(2.0, signed=signed, sampling=sampling)
    # One coordinate each, in which two vectors are furthest apart, is among them.
    for size in [1, 2, 2, 2, 3, 5] * 200:
        pair = torch.from_numpy(rng.integers(-3, 4, (2, size)).astype(np.float64))
        left, right = (clipped(v if signed else v.abs(), 2.0).double() for v in 9 * pair)
        apart = left if sampling == "poisson" else left - right
        most = max(most, float(apart.norm()))
    assert most == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("exactly", [True, False])
def test_a_bounded_sum_is_the_sum_of_bounded_rows(exactly, dtype):
    gen = torch.Generator().manual_seed(2)
    rows = (torch.randn(50, 7, generator=gen) * torch.logspace(-3, 3, 50)[:, None]).to(dtype)
    rows[3] = 0.0
    assert torch.equal(bounded_sum(rows[:0], 1.0, exactly=exactly), torch.zeros(7).double())
    bound = scaled if exactly else clipped
    right = sum(bound(row, 0.7).double() for row in rows)
    assert isinstance(right, Tensor)
    assert torch.allclose(bounded_sum(rows, 0.7, exactly=exactly), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exactly", [True, False])
def test_no_row_moves_a_bounded_sum_by_more_than_its_norm(exactly, dtype):
    gen = torch.Generator().manual_seed(3)
    odd = [math.nan, math.inf, -math.inf, 1e308, -1e300, 1e38, 5e-324, 1e-45, 0.0]
    rows = torch.randn(60, 5, generator=gen, dtype=torch.float64) * 10.0
    for i, value in enumerate(odd * 4):
        rows[i, i % 5] = value
    for i, scale in enumerate([1e-160, 1e-200, 1e-42, 1e-38, 1e38, 1e200]):
        rows[40 + i] *= scale
    rows = rows.to(dtype)
    whole = bounded_sum(rows, 0.3, exactly=exactly)
    assert torch.isfinite(whole).all()
    for i in range(60):
        without = bounded_sum(torch.cat([rows[:i], rows[i + 1 :]]), 0.3, exactly=exactly)
        assert float((whole - without).norm()) <= 0.3 * (1 + 1e-6)
