"""Noise has the distribution it says, from a source of its own."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedprune.config import RunConfig, configure
from fedprune.privacy.noise import (
    LARGEST_VARIANCE,
    Source,
    gaussian,
    secret_source,
    seeded_source,
    skellam,
    uniforms,
)
from fedprune.protocol.limits import noise_source_of


@pytest.fixture(params=["seeded", "secret"])
def source(request) -> Source:
    return seeded_source(7, "test") if request.param == "seeded" else secret_source()


def test_gaussians_are_normal_and_independent(source):
    wide = gaussian(1_000_000, 3.0, source)
    assert wide.dtype == torch.float64
    assert float(wide.std()) == pytest.approx(3.0, rel=0.02)
    assert abs(float(wide.mean())) < 6 * 3.0 / 1000
    drawn = gaussian(100_001, 1.0, source).numpy()
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03
    # The two halves are the two numbers of each pair.
    assert abs(np.corrcoef(drawn[:50_000], drawn[50_001:])[0, 1]) < 0.03


def test_uniforms_never_reach_0_or_1():
    ends = Source(lambda n: np.array([0, 2**64 - 1] * n, dtype=np.uint64)[:n], secret=False)
    low, high = uniforms(2, ends)
    assert 0.0 < low < 1e-15
    assert 1.0 - 1e-15 < high < 1.0
    assert np.isfinite(gaussian(4, 1.0, ends).numpy()).all()


@pytest.mark.parametrize("variance", [0.01, 0.5, 4.0, 19.9, 20.0, 21.0, 60.0, 1000.0, 12345.6])
def test_skellam_is_skellam(variance, source):
    size = 100_000
    drawn = skellam(size, variance, source)
    assert drawn.dtype == np.int64
    law = stats.skellam(variance / 2, variance / 2)
    # Chi-square over bins of at least 50 expected, the rest in the last two.
    reach = math.ceil(4 * math.sqrt(variance)) + 1
    edges = np.arange(-reach, reach + 1, max(1, reach // 20))
    bins = np.concatenate([[-np.inf], edges, [np.inf]])
    expected = size * np.diff(law.cdf(bins))
    seen = np.histogram(drawn, np.concatenate([[-1e18], edges + 0.5, [1e18]]))[0]
    big = expected >= 50
    seen_, expected_ = (np.append(x[big], x[~big].sum()) for x in (seen, expected))
    statistic = ((seen_ - expected_) ** 2 / np.maximum(expected_, 1)).sum()
    assert stats.chi2.sf(statistic, len(seen_)) > 1e-6


def test_skellam_has_the_variance_it_says(source):
    for variance in (3.0, 300.0, 3e6, 3e18, LARGEST_VARIANCE):
        drawn = skellam(200_000, variance, source).astype(np.float64)
        assert drawn.std() == pytest.approx(math.sqrt(variance), rel=0.02)
        assert abs(drawn.mean()) < 6 * math.sqrt(variance / 200_000)


def test_large_skellam_noise_is_normal_down_to_its_last_bit(source):
    variance = 4e16
    drawn = skellam(100_000, variance, source)
    assert stats.kstest(drawn / math.sqrt(variance), "norm").pvalue > 1e-6
    for bit in (1, 2, 4):
        assert (drawn & bit > 0).mean() == pytest.approx(0.5, abs=0.01)


def test_shares_of_skellam_noise_add_up_to_skellam_noise():
    clients, variance = 7, 30.0
    shares = [
        skellam(50_000, variance / clients, seeded_source(1, "share", c)) for c in range(clients)
    ]
    total = sum(shares)
    law = stats.skellam(variance / 2, variance / 2)
    for at in (-10, -3, 0, 3, 10):
        assert (total <= at).mean() == pytest.approx(float(law.cdf(at)), abs=0.015)


def test_no_noise_is_none_and_a_variance_out_of_range_is_refused():
    source = seeded_source(1, "x")
    assert not skellam(100, 0.0, source).any()
    assert not gaussian(100, 0.0, source).any()
    assert gaussian(0, 1.0, source).shape == (0,)
    assert skellam(0, 1.0, source).shape == (0,)
    for variance in (-1.0, math.nan, math.inf, 2.0**97):
        with pytest.raises(ValueError, match="out of range"):
            skellam(1, variance, source)


def test_seeded_noise_repeats_by_purpose_and_place_and_secret_noise_never():
    def drawn(config: RunConfig, *where: int) -> list[float]:
        out: list[float] = gaussian(4, 1.0, noise_source_of(config, "noise", *where)).tolist()
        return out

    seeded, other = (configure({"task": "digits", "seed": seed}) for seed in (4, 5))
    assert drawn(seeded, 1, 2) == drawn(seeded, 1, 2)
    assert drawn(seeded, 1, 2) != drawn(seeded, 1, 3)
    assert drawn(seeded, 1, 2) != drawn(other, 1, 2)
    secret = configure({"task": "digits", "model": "mlp", "dp": "client", "dp_noise": 1.0})
    assert drawn(secret, 1, 2) != drawn(secret, 1, 2)
    assert noise_source_of(secret, "noise").secret
    assert not noise_source_of(seeded, "noise").secret


def test_a_source_goes_on_and_leaves_global_generators_alone():
    source = seeded_source(2, "y")
    before, global_ = torch.get_rng_state(), str(np.random.get_state())
    first, second = gaussian(3, 1.0, source), gaussian(3, 1.0, source)
    assert not torch.equal(first, second)
    skellam(3, 50.0, source)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == global_


def test_a_large_draw_is_made_in_pieces():
    drawn = gaussian(2**20 + 5, 1.0, seeded_source(3, "z"))
    assert len(torch.unique(drawn)) == len(drawn) == 2**20 + 5
