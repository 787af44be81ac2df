import itertools

import pytest
import torch

from fedprune.redundancy.lowrank import Matrix, ranks_for_budget, ranks_for_energy
from fedprune.redundancy.spectrum import Spectrum


def matrix(values: list[float], shape: tuple[int, int], kept: int | None = None) -> Matrix:
    size = shape[0] * shape[1]
    return Matrix(Spectrum(torch.tensor(values).double()), shape, size if kept is None else kept)


FLAT = matrix([1.0] * 8, (8, 8))
STEEP = matrix([8.0, 4, 1, 0.1, 0.1, 0.1, 0.1, 0.1], (8, 20))


def test_energy_factors_only_what_becomes_smaller():
    assert ranks_for_energy({"flat": FLAT, "steep": STEEP}, 0.95) == {"steep": 2}
    assert ranks_for_energy({"flat": FLAT}, 0.3) == {"flat": 3}
    # 4 * 16 is 64: not fewer numbers than the matrix has.
    assert ranks_for_energy({"flat": FLAT}, 0.5) == {}


def test_a_masked_matrix_is_only_factored_below_what_it_keeps():
    thin = matrix([8.0, 4, 1, 0, 0, 0, 0, 0], (8, 20), kept=56)
    assert ranks_for_energy({"thin": thin}, 0.9) == {}
    assert ranks_for_energy({"thin": thin}, 0.7) == {"thin": 1}


@pytest.mark.parametrize("part", [0.95, 0.8, 0.6, 0.4, 0.25])
def test_a_budget_is_kept_with_the_best_ranks_there_are(part):
    """Against every pair of ranks: none within the size that was reached loses less energy."""
    matrices = {"flat": FLAT, "steep": STEEP}
    ranks = ranks_for_budget(matrices, part)

    def size(choice: dict[str, int]) -> int:
        return sum(m.size(choice.get(n)) for n, m in matrices.items())

    def lost(choice: dict[str, int]) -> float:
        return sum(1 - float(matrices[n].spectrum.energies()[r - 1]) for n, r in choice.items())

    assert size(ranks) <= part * (64 + 160)
    assert all(r <= matrices[n].most for n, r in ranks.items())
    every = [
        {n: r for n, r in zip(matrices, pair, strict=True) if r}
        for pair in itertools.product(range(FLAT.most + 1), range(STEEP.most + 1))
    ]
    rivals = [c for c in every if size(c) <= size(ranks)]
    assert lost(ranks) <= min(map(lost, rivals)) + 0.13  # a step of the flat one at most


def test_a_smaller_budget_never_gives_a_higher_rank():
    matrices = {"flat": FLAT, "steep": STEEP}
    rows = [ranks_for_budget(matrices, part) for part in (1.0, 0.9, 0.7, 0.5, 0.3, 0.2, 0.01)]
    for more, less in itertools.pairwise(rows):
        assert more.keys() <= less.keys()
        assert all(less[n] <= r for n, r in more.items())
    assert rows[-1] == {"flat": 1, "steep": 1}


def test_nothing_to_factor_is_no_ranks():
    assert ranks_for_budget({}, 0.5) == {}
