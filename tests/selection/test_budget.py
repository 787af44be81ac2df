from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from by_hand import kept
from hypothesis import given
from hypothesis import strategies as st

from fedprune.selection.budget import sparsest, sparsity_for
from fedprune.selection.select import select
from fedprune.tensors.named import Masks

SCORES = {"w": torch.arange(97.0), "v": torch.arange(40.0)}
N = 137


def at(sparsity: float) -> Masks:
    return select(SCORES, sparsity)


@given(st.floats(2, 140), st.integers(0, 130))
def test_it_is_the_smallest_in_whole_weights(target, before):
    found = sparsity_for(kept, at, target, before / N, N)
    assert kept(at(found)) <= target
    enough = [k for k in range(before, N - 1) if N - k <= target]
    assert found == enough[0] / N


def test_it_asks_about_as_often_as_halving_needs():
    cost = Mock(side_effect=kept)
    sparsity_for(cost, at, 50, 0.0, N)
    assert cost.call_count <= 10


def test_what_wiggles_still_fits():
    def cost(masks: Masks) -> float:
        return kept(masks) + 4 * (kept(masks) % 3)

    assert all(cost(at(sparsity_for(cost, at, t, 0.0, N))) <= t for t in range(11, 140))


def test_too_little_is_refused_with_what_can_be_had():
    with pytest.raises(ValueError, match=r"^target-bytes=1: .*; allowed: 2 or more$"):
        sparsity_for(kept, at, 1, 0.0, N, key="target-bytes")
    with pytest.raises(ValueError, match=r"^cannot remove"):  # an error that is not about sparsity
        sparsity_for(kept, at, 1, 1.0, N)


def test_the_sparsest_masks_are_the_last_that_can_be_chosen():
    def upto(most: int) -> Callable[[float], Masks]:
        def choose(sparsity: float) -> Masks:
            if round(sparsity * N) > most:
                raise ValueError("floors")
            return at(sparsity)

        return choose

    for most in (0, 1, N // 3, N - 2):  # a weight of every tensor stays
        assert N - kept(sparsest(upto(most), 0.0, N)) == most
    with pytest.raises(ValueError, match="floors"):
        sparsest(upto(2), 0.5, N)
