"""Adapters under a mask: what they compute, what is trained, what travels, what comes of it."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

import fedprune
from fedprune import federate
from fedprune.adapters.coded import CODE_BITS, codes_of, in_codes
from fedprune.adapters.factors import (
    DOWN,
    UP,
    adapter_shapes,
    changed_by,
    check_adapters,
    effective,
    first_adapters,
    paths_in,
)
from fedprune.adapters.layers import lora_copy, put_masks
from fedprune.adapters.products import mean_of_products, of_rank, stacked
from fedprune.adapters.targets import adaptable, check_adaptable, targets_of
from fedprune.config import configure
from fedprune.export.adapter_folder import write_adapter
from fedprune.protocol.models import dense_model
from fedprune.structure.layout import layout_of
from fedprune.tensors.codes import restored
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Tensors, copied, masked
from tests.cutting import masks_of, some
from tests.families import FACTS, Family, family, forward
from tests.runs import tiny

SCALE = 0.7


def made(its: Family, rank: int = 3) -> tuple[Tensors, Tensors]:
    """Adapters of no zeros for all its usual layers, and masks of about half."""
    gen = torch.Generator().manual_seed(5)
    paths = targets_of(its.model, its.layout, ())
    shapes = adapter_shapes(paths, (), rank, its.layout)
    adapters = {n: torch.randn(s, generator=gen, dtype=torch.float64) for n, s in shapes.items()}
    masks = {n: torch.rand(its.layout.shapes[n], generator=gen) < 0.5 for n in its.layout.prunable}
    return adapters, masks


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", FACTS)
def test_merging_keeps_the_mask_exactly_and_says_what_the_layers_with_factors_say(name):
    its = family(name)
    adapters, masks = made(its)
    before = copied(state_of(its.model))
    frozen = masked(before, masks)
    weights = effective(frozen, adapters, masks, its.layout, SCALE)
    try:
        load_into(its.model, frozen)
        apart = lora_copy(its.model, shapes_of(adapters), SCALE).eval()
        load_into(apart, adapters)
        put_masks(apart, masks)
        found = forward(name, apart)
        load_into(its.model, weights)
        torch.testing.assert_close(found, forward(name, its.model), atol=1e-9, rtol=1e-9)
    finally:
        load_into(its.model, before)
    for n, mask in masks.items():
        assert torch.equal(weights[n] != 0, mask), n  # no factor, and so no product, is 0 here
    moved = {n for n in weights if not torch.equal(weights[n], frozen[n])}
    assert moved == set(changed_by(adapters))
    assert len(moved) >= 4


def test_factors_begin_as_those_of_peft_and_change_nothing():
    its = family("llama")
    paths = targets_of(its.model, its.layout, ("q_proj", ".*mlp.down_proj"))
    assert len(paths) == 4
    shapes = adapter_shapes(paths, (), 2, its.layout)
    adapters = first_adapters(shapes, {}, seed=1)
    state = {n: t.float() for n, t in state_of(its.model).items()}
    made_of = effective(state, adapters, {}, its.layout, SCALE)
    assert all(torch.equal(made_of[n], state[n]) for n in state)
    a = adapters[f"{QUERY}{DOWN}"]
    assert 0.5 / a.shape[1] ** 0.5 < a.abs().max() <= 1 / a.shape[1] ** 0.5


def test_targets_that_are_none_and_ranks_that_no_layer_has_are_refused_with_those_that_are():
    its = family("llama")
    for wanted in ("up", "self_attn", "(", "model.layers.0", "", "a{99999}"):
        with pytest.raises(ValueError, match=r"^targets=.*; allowed: q_proj, k_proj, .*, or a reg"):
            targets_of(its.model, its.layout, ("q_proj", wanted))
    most = max(min(its.layout.shapes[f"{p}.weight"]) for p in targets_of(its.model, its.layout, ()))
    check_adaptable(its.model, its.layout, (), most)
    with pytest.raises(ValueError, match=f"^rank={most + 1}.*allowed: 1 to {most}$"):
        check_adaptable(its.model, its.layout, (), most + 1)


def test_a_layer_whose_weight_is_also_the_embedding_gets_no_factors():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
            self.out.weight = self.table.weight

    model = Tied()
    assert adaptable(model, layout_of(model)) == ("inner",)


QUERY = "model.layers.0.self_attn.q_proj"
ODD = {
    "no layer": {f"gone{DOWN}": (2, 12)},
    "one factor": {f"{QUERY}{DOWN}": (2, 12)},
    "another size": {f"{QUERY}{DOWN}": (2, 13), f"{QUERY}{UP}": (12, 2)},
    "a norm": {f"model.norm{DOWN}": (2, 12), f"model.norm{UP}": (12, 2)},
    "a whole parameter of another size": {"lm_head.weight": (3, 3)},
}


@pytest.mark.parametrize("name", ODD)
def test_adapters_that_are_not_the_models_are_refused(name):
    with pytest.raises(ValueError, match=r"^adapters: "):
        check_adapters({n: torch.Size(s) for n, s in ODD[name].items()}, family("llama").layout)


ONE = {"model": "mlp", "rounds": 1, "warmup": 0, "end": 1, "adapters": "lora", "rank": 1}
LM: dict[str, Any] = {
    **{"task": "shakespeare", "engine": "inline", "clients": 3, "cohort": 2, "hosts": 2},
    **{"rounds": 3, "warmup": 1, "end": 3, "local_steps": 2, "batch_size": 4, "depth": 1},
    **{"width": 32, "length": 16, "sparsity": 0.5, "seed": 1, "score_examples": 64},
    **{"adapters": "lora", "rank": 2, "score": "wanda", "scope": "row", "lr": 0.05},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[fedprune.Result, Path]:
    folder = tmp_path_factory.mktemp("adapters") / "run"
    return federate(configure(LM), folder=folder), folder


@pytest.mark.slow
def test_only_adapters_are_trained_and_travel(run):
    result, _ = run
    config = configure(LM)
    model = result.state.model
    start = state_of(dense_model(config))
    factors = sum(t.numel() for t in model.adapters.values())
    changed = changed_by(model.adapters)
    assert len(changed) == 7
    assert factors < 0.2 * sum(t.numel() for t in start.values())
    for name, w in model.weights.items():
        mask = model.masks.get(name, torch.ones_like(w, dtype=torch.bool))
        assert torch.equal(w[mask], start[name][mask]) == (name not in changed)
        assert not w[~mask].any()
    first = result.rows[0]
    assert 2 * 4 * factors < first["bytes_up"] < 2 * (4 * factors + 1000)
    assert 2 * 4 * factors < first["bytes_down"] < 2 * (4 * factors + 3000)


def test_the_result_is_the_merged_model_as_sparse_as_its_mask(run):
    result, folder = run
    model, state = result.state.model, state_of(fedprune.load(folder))
    assert all(torch.equal(state[n], w) for n, w in model.weights.items())
    wanted = sum(int(m.sum()) for m in model.masks.values())
    assert sum(int((state[n] != 0).sum()) for n in model.masks) == wanted
    assert 2 * wanted == sum(m.numel() for m in model.masks.values())


def test_codes_are_measured_by_a_model_that_another_question_had_emptied():
    """An arm after a run that was cut: the dense model has let go of its values by then."""
    keys = {"adapter_base": "int8", "unit": "channel", "shrink": "end", "sparsity": 0.5}
    result = federate(tiny(**{**ONE, **keys, "rounds": 2}, baselines=("magnitude",)))
    assert {row["arm"] for row in result.rows} == {"pruned", "magnitude"}
    assert not [failure for row in result.rows for failure in row["failures"]]


@pytest.mark.slow
def test_the_count_of_labels_is_about_no_adapters():
    """Every client failed it, so that the run lacked what the commonest label reaches."""
    secure = {"secure": "secagg", "noise_source": "seeded"}
    plain, summed = (federate(tiny(**ONE, **more)).summary["naive"] for more in ({}, secure))
    assert plain
    assert summed == plain


@pytest.mark.slow
def test_an_image_model_of_transformers_takes_adapters_and_trains_its_head():
    result = federate(tiny(**{**ONE, "model": "vit"}))
    assert result.rows[0]["failures"] == []
    assert "classifier.weight" in result.state.model.adapters


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", CODE_BITS)
def test_a_base_in_codes_gives_the_bits_of_rounded_weights_in_float32(kind, run):
    config, held = configure({**LM, "adapter_base": kind}), run[0].state.model
    model = dense_model(config)
    start = copied(state_of(model))
    paths = paths_in(held.adapters)
    rounded = dict(in_codes(start, paths, layout_of(model, output=("lm_head",)), kind))
    for name in (f"{path}.weight" for path in paths):
        step = start[name].abs().max() / (2 ** (CODE_BITS[kind] - 1) - 1)
        assert 0 < (rounded[name] - start[name]).abs().max() <= 0.51 * step
    found, wanted = federate(config), federate(configure(LM), weights=rounded)
    after = found.state.model.weights
    assert all(torch.equal(w, after[n]) for n, w in wanted.state.model.weights.items())
    for a, b in zip(found.rows, wanted.rows, strict=True):
        assert (a["loss"], a["mask_digest"]) == (b["loss"], b["mask_digest"])
    assert found.rows[-1]["zeros"] == run[0].rows[-1]["zeros"]
    assert found.rows[0]["bytes_down"] < 1.1 * run[0].rows[0]["bytes_down"]  # the base is held


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(5, 64), (3, 130), (4, 33), (2, 1)])
def test_codes_stay_codes_whatever_is_removed_and_hold_a_byte_or_half_of_one(bits, shape):
    gen = torch.Generator().manual_seed(bits)
    weights = {"q.weight": torch.randn(shape, generator=gen) * 10.0 ** torch.randint(-20, 20, (1,))}
    layout, kind = layout_of(nn.ModuleDict({"q": nn.Linear(*shape[::-1])})), f"int{bits}"
    once = in_codes(weights, ("q",), layout, kind)
    twice = in_codes(once, ("q",), layout, kind)["q.weight"]
    assert torch.equal(twice, once["q.weight"])
    for share in (0.5, 0.9, 1.0):
        left = twice.masked_fill(torch.rand(shape, generator=gen) < share, 0.0)
        codes = codes_of(left, bits)
        assert torch.equal(restored(codes, bits, shape[1]), left)
        assert codes.packed.numel() * 8 >= shape[0] * shape[1] * bits
        if shape[1] == 64:
            assert codes.packed.numel() * 8 == shape[0] * shape[1] * bits
    if shape[1] > 1:
        with pytest.raises(ValueError, match=r"^weights: not of "):
            codes_of(torch.randn(shape, generator=gen), bits)


RANKS = (1, 3, 2)


def clients(seed: int = 0) -> tuple[Tensors, list[tuple[float, Tensors]]]:
    """Adapters of a layer before a round, and those of three clients after it."""
    gen = torch.Generator().manual_seed(seed)

    def of(rank: int) -> Tensors:
        drawn = [torch.randn(s, generator=gen) for s in ((rank, 6), (7, rank), (3, 2))]
        return dict(zip((f"q{DOWN}", f"q{UP}", "head.weight"), drawn, strict=True))

    return of(max(RANKS)), [(float(i + 1), of(r)) for i, r in enumerate(RANKS)]


def of_all(some: Tensors) -> np.ndarray:
    return some[f"q{UP}"].double().numpy() @ some[f"q{DOWN}"].double().numpy()


@pytest.mark.parametrize("lr", [1.0, 0.3, 1.5])
def test_products_are_averaged_and_cut_as_numpy_does(lr):
    old, came = clients()
    mean = sum(w / 6 * of_all(a) for w, a in came)
    wanted = of_all(old) + lr * (mean - of_all(old))
    u, s, vt = np.linalg.svd(wanted)
    for rank in (1, 3, 6, 8):
        found = mean_of_products(old, came, rank, lr)
        near = (u[:, :rank] * s[:rank]) @ vt[:rank] if rank < 6 else wanted
        np.testing.assert_allclose(of_all(found), near, atol=1e-5)
        assert found[f"q{DOWN}"].shape == (rank, 6)
        shorter = of_rank(found, 2)  # what a client of a smaller rank is sent
        if rank >= 2:
            np.testing.assert_allclose(of_all(shorter), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)
    head = sum(w / 6 * a["head.weight"] for w, a in came)
    wanted = old["head.weight"] + lr * (head - old["head.weight"])
    torch.testing.assert_close(found["head.weight"], wanted)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_stack_is_the_exact_sum_however_high_it_grows(rounds):
    stack, _ = clients()
    wanted = of_all(stack)
    for seed in range(rounds):
        _, came = clients(seed)
        stack = stacked(stack, came, 0.5)
        wanted = wanted + 0.5 * sum(w / 6 * of_all(a) for w, a in came)
        np.testing.assert_allclose(of_all(stack), wanted, atol=1e-5)
    assert len(stack[f"q{DOWN}"]) == 6  # no more than the layer's smaller side


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "bert", "t5"])
def test_peft_reads_the_folder_and_says_the_same_where_whole_units_are_gone(name, tmp_path):
    its = family(name)
    adapters, _ = made(its)
    masks = masks_of(its.layout, some(its.layout, "head", "neuron"))
    before = copied(state_of(its.model))
    try:
        load_into(its.model, masked(before, masks))
        assert write_adapter(tmp_path, its.model, adapters, masks, SCALE)
        theirs = PeftModel.from_pretrained(copy.deepcopy(its.model), tmp_path).double().eval()
        weights = effective(masked(before, masks), adapters, masks, its.layout, SCALE)
        load_into(its.model, weights)
        want = forward(name, its.model)
        torch.testing.assert_close(forward(name, theirs), want, atol=1e-9, rtol=1e-9)
        merged = forward(name, theirs.merge_and_unload())
        torch.testing.assert_close(merged, want, atol=1e-9, rtol=1e-9)
    finally:
        load_into(its.model, before)
