import copy
from dataclasses import replace

import pytest
import torch
from cutting import CASES, every, masked_model, masks_of, some
from families import FACTS, family, laid_out
from specimens import BLOCKS, built, furthest, taken

from fedprune.scores.catalog import SCORES
from fedprune.structure.cuts import edits_of, places
from fedprune.structure.edits import Edit
from fedprune.structure.surgery import reshaped
from fedprune.tensors.models import state_of
from fedprune.tensors.named import full_masks, masked

NAMES = list(FACTS)


@pytest.mark.parametrize("name", NAMES)
def test_masks_become_the_edits_of_the_units_they_silence_and_of_no_others(name):
    layout = family(name).layout
    gone = some(layout, "head", "neuron")
    masks = masks_of(layout, gone)
    for mask in masks.values():  # a hole here and there silences nobody
        mask.view(-1)[::7] = False
    kept = {(e.kind, e.path): e.kept for e in edits_of(masks, layout)}
    for group in layout.structure.groups:
        units, lost = len(group.parts[0].index), gone[group.kind, group.path]
        assert kept[group.kind, group.path] == tuple(u for u in range(units) if u not in lost)
    assert edits_of(full_masks(masks, masks), layout) == ()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", NAMES)
def test_a_second_cut_is_in_original_indices_and_the_same_as_one_cut(name):
    f = family(name)
    once = masks_of(f.layout, some(f.layout, "head", "neuron"))
    first = edits_of(once, f.layout)
    between = laid_out(name, reshaped(copy.deepcopy(f.model), first))
    assert edits_of(masks_of(between, {}), between, first) == first
    gone = every(between, between.structure.blocks[-1].path) | some(between, "neuron")
    masks = masks_of(between, gone)
    second = edits_of(masks, between, first)
    by_key = {(e.kind, e.path): e.kept for e in second}
    assert all(set(by_key[e.kind, e.path]) <= set(e.kept) for e in first)
    whole = places(f.model, first).expand(masks, fill=False, gone=f.layout.prunable)
    assert edits_of(whole, f.layout) == second


def test_a_unit_lives_as_long_as_any_of_its_weights():
    layout = family("llama-gqa").layout
    group = next(g for g in layout.structure.groups if g.kind == "head")
    for part in group.parts:
        masks = masks_of(layout, {(group.kind, group.path): {0}})
        rows = masks[part.tensor]
        line = int(part.index[0, -1])
        (rows if part.axis == "row" else rows.t())[line, 3] = True
        assert edits_of(masks, layout) == ()


def test_places_have_no_indices_of_what_is_whole_and_leave_the_model_alone():
    f = family("gpt2")
    before = {n: t.clone() for n, t in state_of(f.model).items()}
    there = places(f.model, [Edit("neuron", "transformer.h.1.mlp", (1, 4, 5))])
    inner = "transformer.h.1.mlp"
    rows = torch.tensor([1, 4, 5])
    assert set(there.axes) == {
        f"{inner}.c_fc.weight", f"{inner}.c_fc.bias", f"{inner}.c_proj.weight"
    }  # fmt: skip
    first, second = there.axes[f"{inner}.c_fc.weight"]
    assert first is None
    assert torch.equal(second, rows)
    assert there.gone == frozenset()
    assert all(torch.equal(before[n], t) for n, t in state_of(f.model).items())
    part = {f"{inner}.c_proj.weight": before[f"{inner}.c_proj.weight"], "transformer.wte.weight":
            before["transformer.wte.weight"]}  # fmt: skip
    small = there.restrict(part)
    assert small["transformer.wte.weight"] is part["transformer.wte.weight"]
    assert small[f"{inner}.c_proj.weight"].shape == (3, 12)


DRAWN = {"random", "perturbation"}  # by the shapes of the tensors
ELSEWHERE = {"synflow", "sparsegpt"}  # not for transformers; a step and no score


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", BLOCKS)
def test_scores_are_the_same_whether_what_went_is_masked_or_gone(name):
    whole = built(name)
    gone = masks_of(whole.layout, CASES["the first block"](whole.layout))
    masks = {n: mask & gone[n] for n, mask in whole.masks.items()}
    edits = edits_of(masks, whole.layout)
    there = places(whole.model, edits)
    silent = replace(whole, model=masked_model(whole.model, masks), masks=masks)
    model = reshaped(copy.deepcopy(silent.model), edits)
    small = replace(silent, model=model, layout=laid_out(name, model), masks=there.restrict(masks))
    for key in SCORES.keys() - DRAWN - ELSEWHERE:
        unit = "head" if SCORES[key].most else "weight"
        want, got = (
            SCORES[key].finalise(taken(SCORES[key], s, s.shards, unit=unit))
            for s in (silent, small)
        )
        got, want = masked(got, small.masks), masked(there.restrict(want), small.masks)
        assert furthest(got, want) <= 1e-9, key
