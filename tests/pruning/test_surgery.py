import copy

import pytest
import torch
from cutting import CASES, masked_model, masks_of
from families import FACTS, Family, family, forward
from torch import nn

from fedprune.pruning.cuts import edits_of, places
from fedprune.pruning.edits import Edits
from fedprune.pruning.surgery import reshaped
from fedprune.tensors import Masks, masked, state_of

NAMES = list(FACTS)
WAYS = ["eager", "sdpa"]
matrix = pytest.mark.parametrize(("name", "case"), [(n, c) for n in NAMES for c in CASES])


def cut(f: Family, case: str) -> tuple[Masks, Edits]:
    masks = masks_of(f.layout, CASES[case](f.layout))
    return masks, edits_of(masks, f.layout)


def attending(model: nn.Module, way: str) -> nn.Module:
    model = copy.deepcopy(model)
    model.set_attn_implementation(way)
    return model


@pytest.mark.parametrize("way", WAYS)
@matrix
def test_a_cut_model_says_what_the_masked_one_says(name: str, case: str, way: str) -> None:
    f = family(name)
    masks, edits = cut(f, case)
    model = attending(f.model, way)
    silent = masked_model(model, masks)
    want, whole = forward(name, silent), forward(name, model)
    got = forward(name, reshaped(silent, edits))
    assert (got - want).abs().max() <= 1e-9
    assert (whole - want).abs().max() > 1e-2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_in_float32_it_does_too(name: str, way: str) -> None:
    f = family(name)
    masks, edits = cut(f, "both")
    silent = masked_model(attending(f.model, way), masks).float()
    want = forward(name, silent)
    assert (forward(name, reshaped(silent, edits)) - want).abs().max() <= 1e-5 * want.abs().max()


@matrix
def test_what_stays_are_the_same_numbers_under_the_same_names(name: str, case: str) -> None:
    f = family(name)
    edits = cut(f, case)[1]
    small = reshaped(copy.deepcopy(f.model), edits)
    there = places(f.model, edits)
    want, got = there.restrict(state_of(f.model)), state_of(small)
    assert list(got) == list(want)
    assert all(torch.equal(got[n], want[n]) for n in want)
    assert all(p.is_contiguous() for p in small.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_on_the_cut_model_is_one_on_the_masked_model(name: str) -> None:
    f = family(name)
    masks, edits = cut(f, "both")
    there = places(f.model, edits)
    silent = masked_model(f.model, masks)
    small = reshaped(copy.deepcopy(silent), edits)
    for model in (silent, small):
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        forward(name, model, grad=True).square().mean().backward()
        opt.step()
    want = there.restrict(masked(state_of(silent), masks))
    got = state_of(small)
    assert all(torch.allclose(got[n], want[n], rtol=0, atol=1e-12) for n in want)
    before = there.restrict(state_of(f.model))
    assert sum(not torch.allclose(got[n], before[n]) for n in want) > len(want) / 2
