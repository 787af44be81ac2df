import copy
import pickle
import re
from dataclasses import replace

import pytest
import torch
from cutting import CASES, every, masked_model, masks_of, some
from families import EXPERTS, FACTS, NORMS, OUTPUT, QUERIES, RMS, Family, family, forward, inputs
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.structure.cuts import edits_of, places
from fedprune.structure.edits import Edit, Edits
from fedprune.structure.flops import flops, positions_of
from fedprune.structure.layout import layout_of
from fedprune.structure.surgery import ordered, reshaped
from fedprune.tasks.task import Loss
from fedprune.tensors.lazy import LazyTensors, shapes_of
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Masks, full_masks, masked

NAMES = list(FACTS)
WAYS = ["eager", "sdpa"]
matrix = pytest.mark.parametrize(("name", "case"), [(n, c) for n in NAMES for c in CASES])


def cut(f: Family, case: str) -> tuple[Masks, Edits]:
    masks = masks_of(f.layout, CASES[case](f.layout))
    return masks, edits_of(masks, f.layout)


def attending(model: nn.Module, way: str) -> nn.Module:
    """The model, changed in place."""
    if way == "eager" or model._supports_sdpa:  # Gemma 2 caps what is written out alone
        model.set_attn_implementation(way)
    return model


@pytest.mark.sampled(70)
@matrix
def test_a_cut_model_is_the_masked_one_with_fewer_numbers(name, case):
    """It says the same in either way to attend; what stays are the same numbers by name."""
    f = family(name)
    masks, edits = cut(f, case)
    silent = masked_model(f.model, masks)
    small = reshaped(copy.deepcopy(silent), edits)
    assert_places(silent, small, edits)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (f.model, small)]
    assert sizes[0] - sizes[1] == lost(f, case, masks) > 0
    whole = forward(name, f.model)
    for way in WAYS:
        want, got = (forward(name, attending(model, way)) for model in (silent, small))
        assert (got - want).abs().max() <= 1e-9
        assert (whole - want).abs().max() > 1e-2


def assert_places(model: nn.Module, small: nn.Module, edits: Edits) -> None:
    """What a cut left is what its places say, also of a model in files."""
    there, state = places(model, edits), state_of(model)
    want, got = there.restrict(state), state_of(small)
    assert list(got) == list(want)
    assert all(torch.equal(got[n], want[n]) for n in want)
    assert all(p.is_contiguous() for p in small.parameters())
    made = there.restrict(LazyTensors(state, state.__getitem__))
    assert isinstance(made, LazyTensors)
    assert made.shapes == shapes_of(want)
    assert all(torch.equal(made[n], want[n]) for n in want)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_in_float32_it_does_too(name, way):
    f = family(name)
    masks, edits = cut(f, "both")
    silent = attending(masked_model(f.model, masks), way).float()
    want = forward(name, silent)
    assert (forward(name, reshaped(silent, edits)) - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_on_the_cut_model_is_one_on_the_masked_model(name):
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
    # Gemma's norms sum their gradients in float32, over the heads that are there.
    close = 1e-8 if name == "gemma3" else 1e-12
    assert all(torch.allclose(got[n], want[n], rtol=0, atol=close) for n in want)
    before = there.restrict(state_of(f.model))
    assert sum(not torch.allclose(got[n], before[n]) for n in want) > len(want) / 2


def biases(f: Family, tensor: str) -> int:
    """How many numbers a layer's bias has."""
    shape = f.layout.shapes.get(tensor.removesuffix("weight") + "bias")
    return 0 if shape is None else shape.numel()


def lost(f: Family, case: str, masks: Masks) -> int:
    """By hand: what is masked, the units' biases, norms before what is gone, T5's table."""
    gone = CASES[case](f.layout)
    count = sum(int((~mask).sum()) for mask in masks.values())
    for group in f.layout.structure.groups:
        out, units = len(gone.get((group.kind, group.path), ())), len(group.parts[0].index)
        count += sum(biases(f, p.tensor) * out // units for p in group.parts if p.axis == "row")
        if out == units:
            count += NORMS.get(f.name, RMS)[group.kind == "neuron"]
            # ModernBERT's first attention reads what the norm of its embeddings says.
            count -= 12 if group.path == "model.layers.0.attn" else 0
    # With an expert goes its row of the router, with a shared one its gate, with all the norm.
    for mixture in f.layout.structure.mixtures:
        count += 12 * (every(f.layout, f"{mixture.path}.").items() <= gone.items())
    if f.name.startswith("t5") and case in {"all attentions", "everything"}:
        count += 2 * 32 * 3
    return count


def operations(name: str, model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter:
        forward(name, model)
    return counter.get_total_flops()


@pytest.mark.sampled(22)
@matrix
def test_operations_fall_by_what_was_counted(name, case):
    f = family(name)
    masks, edits = cut(f, case)
    if name in EXPERTS:
        return  # whom a token is sent to depends on all that was cut before
    model = attending(copy.deepcopy(f.model), "eager")
    small = reshaped(copy.deepcopy(model), edits)
    positions = positions_of(model, f.layout, {"labels": torch.zeros(2)}, lambda m, _: run(name, m))
    kept = flops(masks, positions)
    expected = 2 * (flops(full_masks(masks, masks), positions) - kept)
    for (kind, path), units in CASES[case](f.layout).items():
        if kind == "head":  # two products of 7 queries with 7 keys (or 5) in each of two texts
            tokens = 5 if name == "vit" else 7
            keys = 5 if "crossattention" in path else tokens
            each = 2 * 2 * 2 * tokens * keys * FACTS[name][1]
            expected += len(units) * QUERIES.get(name, 1) * each
    assert operations(name, model) - operations(name, small) == expected > 0
    left = replace(f.layout, prunable=tuple(n for n in masks if n in state_of(small)))
    seen = positions_of(small, left, {"labels": torch.zeros(2)}, lambda m, _: run(name, m))
    assert flops(full_masks(state_of(small), left.prunable), seen) == kept


def run(name: str, model: nn.Module) -> Loss:
    forward(name, model)
    return Loss(torch.tensor(0.0), 0, 1)


@pytest.mark.sampled(18)
@pytest.mark.parametrize("case", ["both", "the first block", "everything"])
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_model_can_be_copied_pickled_and_filled_by_name(name, case):
    f = family(name)
    edits = cut(f, case)[1]
    small = reshaped(copy.deepcopy(f.model), edits)
    want = forward(name, small)
    assert torch.equal(forward(name, copy.deepcopy(small)), want)
    assert torch.equal(forward(name, pickle.loads(pickle.dumps(small))), want)
    other = copy.deepcopy(f.model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    other = reshaped(other, edits)
    assert (forward(name, other) - want).abs().max() > 1e-2
    load_into(other, state_of(small))
    assert torch.equal(forward(name, other), want)


def test_ties_are_intact_and_frozen_parameters_stay_frozen():
    for name in NAMES:
        f = family(name)
        model = copy.deepcopy(f.model)
        frozen = [n for i, (n, _) in enumerate(model.named_parameters()) if i % 3 == 0]
        for n in frozen:
            model.get_parameter(n).requires_grad_(False)
        small = reshaped(model, cut(f, "the first block")[1])
        grads = {n: p.requires_grad for n, p in small.named_parameters()}
        assert [n for n, g in grads.items() if not g] == [n for n in frozen if n in grads]
        head, table = small.get_output_embeddings(), small.get_input_embeddings()
        if head is not None:  # a classifier of images predicts no symbols
            assert (head.weight is table.weight) == small.config.tie_word_embeddings
        before = forward(name, small)
        small.tie_weights()
        assert torch.equal(forward(name, small), before)


def test_modules_that_share_their_weights_are_cut_together():
    for name, inner in [("llama", "mlp"), ("llama-gqa", "self_attn"), ("llama", "self_attn")]:
        model = copy.deepcopy(family(name).model)
        first, second = (getattr(layer, inner) for layer in model.model.layers)
        for (_, one), (_, two) in zip(first.named_children(), second.named_children(), strict=True):
            if hasattr(one, "weight"):
                two.weight = one.weight
        layout = layout_of(model, output=("lm_head",))
        kind = "neuron" if inner == "mlp" else "head"
        assert len([g for g in layout.structure.groups if g.kind == kind]) == 1
        for gone in (some(layout, kind), every(layout, f"model.layers.0.{inner}.")):
            masks = masks_of(layout, gone)
            silent = masked_model(model, masks)
            want = forward(name, silent)
            small = reshaped(silent, edits_of(masks, layout))
            assert (forward(name, small) - want).abs().max() <= 1e-9
            assert (forward(name, model) - want).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_hidden_states_are_still_counted_by_block(name):
    f = family(name)
    small = reshaped(copy.deepcopy(f.model), cut(f, "the first block")[1])
    ids = torch.arange(6).reshape(1, 6)
    extra = {"decoder_input_ids": ids} if name == "t5" else {}
    said = [m(input_ids=ids, output_hidden_states=True, **extra) for m in (f.model, small)]
    for key in ["encoder_hidden_states", "decoder_hidden_states"] if extra else ["hidden_states"]:
        whole, left = said[0][key], said[1][key]
        assert len(whole) == len(left) == 3
        assert (whole[1] - left[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_of_activations_gives_the_same_gradients(name):
    f = family(name)
    grads = []
    for checkpointing in (False, True):
        small = reshaped(copy.deepcopy(f.model), cut(f, "the first block")[1]).train()
        for module in small.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        if checkpointing:
            small.activation_checkpointing_enable()
        forward(name, small, grad=True).square().mean().backward()
        grads.append([p.grad for p in small.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True) if a is not None)
    assert all((a is None) == (b is None) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Edit("shape", "model"), "no such kind; allowed: "),
        (Edit("head", "model.layers.7.self_attn"), "there is nothing"),
        (Edit("head", "model.layers.0.mlp"), "there is LlamaMLP; allowed: LlamaAttention"),
        (Edit("neuron", "model.layers.0.self_attn"), "allowed: LlamaMLP"),
        (Edit("head", "model.layers.0.self_attn", (0, 3)), "ascending numbers below 3"),
        (Edit("neuron", "model.layers.0.mlp", (-1,)), "ascending numbers below 10"),
        (Edit("neuron", "model.layers.0.mlp", (4, 2)), "ascending"),
        (Edit("neuron", "model.layers.0.mlp", (2, 2)), "ascending"),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        reshaped(copy.deepcopy(family("llama").model), [edit])


def test_what_was_cut_is_not_cut_again_and_no_edit_is_given_twice():
    edit = Edit("neuron", "model.layers.0.mlp", (0, 1, 2))
    small = reshaped(copy.deepcopy(family("llama").model), [edit])
    with pytest.raises(ValueError, match="cut already"):
        reshaped(small, [Edit("neuron", "model.layers.0.mlp", (0, 1))])
    with pytest.raises(ValueError, match="there are two"):
        ordered([edit, Edit("neuron", "model.layers.0.mlp", (0, 1))])


def test_edits_have_one_order():
    edits = [
        Edit("share", "a", like="b"),
        Edit("neuron", "b", (0,)),
        Edit("neuron", "a", (0,)),
        Edit("head", "z", (0,)),
        Edit("rank", "b", (2,)),
    ]
    assert list(ordered(edits)) == edits[::-1]


def test_without_edits_nothing_happens():
    model = copy.deepcopy(family("t5").model)
    before = {n: id(p) for n, p in model.named_parameters()}
    assert reshaped(model, []) is model
    whole = [Edit("head", "encoder.block.0.layer.0.SelfAttention", (0, 1, 2))]
    reshaped(model, whole)
    assert {n: id(p) for n, p in model.named_parameters()} == before
    assert torch.equal(forward("t5", model), forward("t5", family("t5").model))


ADAPTED = {
    "bert": ["query", "value", "intermediate.dense"],
    "roberta": ["query", "value", "intermediate.dense"],
    "gpt2": ["c_attn", "c_fc"],
    "gpt2-cross": ["c_attn", "q_attn", "c_fc"],
    "t5": ["q", "o", "wi", "wo"],
    "t5-gated": ["q", "o", "wi_0", "wo"],
    "llama": ["q_proj", "o_proj", "down_proj"],
    "llama-gqa": ["q_proj", "o_proj", "down_proj"],
    "opt": ["q_proj", "out_proj"],
    "opt-post": ["q_proj", "v_proj"],
    "gpt-neox": ["query_key_value", "dense_h_to_4h"],
    "distilbert": ["q_lin", "v_lin", "lin1"],
    "electra": ["query", "value", "intermediate.dense"],
    "vit": ["q_proj", "v_proj", "fc1"],
    "modernbert": ["Wqkv", "Wi"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj"],
}


@pytest.mark.sampled(12)
@pytest.mark.parametrize("case", ["both", "the first block"])
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_model_takes_low_rank_adapters_that_train_and_merge(name, case):
    peft = pytest.importorskip("peft")
    f = family(name)
    small = reshaped(copy.deepcopy(f.model), cut(f, case)[1])
    want = forward(name, small)
    targets = ADAPTED.get(name, ADAPTED["llama"])
    config = peft.LoraConfig(
        r=2, target_modules=targets, init_lora_weights=True, fan_in_fan_out="gpt2" in name
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(small, config).double().eval()
    assert torch.equal(forward(name, adapted), want)
    opt = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        opt.zero_grad()
        forward(name, adapted, grad=True).square().mean().backward()
        opt.step()
    trained = forward(name, adapted)
    assert (trained - want).abs().max() > 1e-3
    assert (forward(name, adapted.merge_and_unload()) - trained).abs().max() <= 1e-9


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", ["both", "an attention", "the first block", "all feed-forwards"])
@pytest.mark.parametrize("name", NAMES)
def test_units_are_cut_through_factors_too(name, case):
    f = family(name)
    first = [f.layout.structure.groups[0], f.layout.structure.groups[-1]]
    layers = {part.tensor.removesuffix(".weight") for group in first for part in group.parts}
    ranks = [Edit("rank", path, (4,)) for path in sorted(layers)]
    model = reshaped(copy.deepcopy(f.model), ranks)
    layout = layout_of(model, output=(OUTPUT.get(name, "lm_head"),))
    assert [g.path for g in layout.structure.groups] == [g.path for g in f.layout.structure.groups]
    masks = masks_of(layout, CASES[case](layout))
    edits = edits_of(masks, layout)
    silent = masked_model(model, masks)
    want = forward(name, silent)
    small = reshaped(copy.deepcopy(silent), edits)
    assert (forward(name, small) - want).abs().max() <= 1e-9
    assert (forward(name, model) - want).abs().max() > 1e-2
    at_once = reshaped(copy.deepcopy(f.model), [*edits, *ranks])
    there = places(model, edits).restrict(state_of(silent))
    assert shapes_of(state_of(at_once)) == shapes_of(state_of(small)) == shapes_of(there)
    load_into(at_once, there)
    assert torch.equal(forward(name, at_once), forward(name, small))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama-gqa"])
def test_torch_can_export_a_cut_model(name):
    f = family(name)
    for case in ("both", "the first block"):
        small = reshaped(copy.deepcopy(f.model), cut(f, case)[1])
        exported = torch.export.export(small, (), inputs(name, small), strict=False)
        with torch.no_grad():
            said = exported.module()(**inputs(name, small)).logits
        assert torch.equal(said, forward(name, small))
