import math

import numpy as np
import pytest
import torch

from fedprune.redundancy.spectrum import Spectrum, spectrum_of

GEN = torch.Generator().manual_seed(5)


def test_equal_values_count_whole_and_one_value_counts_once():
    assert Spectrum(torch.ones(6).double()).effective_rank == pytest.approx(6.0)
    assert Spectrum(torch.tensor([3.0, 0.0, 0.0])).effective_rank == pytest.approx(1.0)
    assert Spectrum(torch.zeros(3)).effective_rank == 0.0
    halves = Spectrum(torch.tensor([2.0, 1.0, 1.0]))
    assert halves.effective_rank == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))


def test_the_rank_of_an_energy_is_the_least_that_holds_it():
    spectrum = Spectrum(torch.tensor([2.0, 1.0, 1.0, 0.0]).double())  # squares 4, 1, 1, 0
    table = {0.0: 1, 4 / 6: 1, 0.67: 2, 5 / 6: 2, 0.9: 3, 1.0: 3}
    assert {part: spectrum.rank_of_energy(part) for part in table} == table
    assert Spectrum(torch.zeros(3)).rank_of_energy(0.9) == 1


def test_the_values_are_those_of_what_comes_out_for_the_inputs():
    w = torch.randn(5, 4, generator=GEN).double()
    x = torch.randn(4, 50, generator=GEN).double()
    oracle = np.linalg.svd((w @ x).numpy(), compute_uv=False)[:4]
    assert np.allclose(spectrum_of(w, x @ x.t()).values.numpy(), oracle, rtol=1e-6)
    assert np.allclose(spectrum_of(w).values.numpy(), np.linalg.svd(w.numpy())[1])
