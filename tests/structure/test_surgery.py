import copy
import functools
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from cutting import CASES, Cut, cut, every, some
from families import EXPERTS, FACTS, NORMS, QUERIES, RMS, Family, family, forward, inputs, laid_out
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.structure.cuts import places
from fedprune.structure.edits import Edit, Edits
from fedprune.structure.flops import flops, positions_of
from fedprune.structure.groups import structure_of
from fedprune.structure.layout import Layout, layout_of
from fedprune.structure.surgery import ordered, reshaped
from fedprune.tasks.task import Loss
from fedprune.tensors.lazy import LazyTensors, shapes_of
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Masks, full_masks, masked

NAMES = list(FACTS)


def of(name: str, case: str) -> tuple[Family, Cut]:
    f = family(name)
    return f, cut(f.model, f.layout, CASES[case](f.layout))


@functools.cache
def whole(name: str) -> Tensor:
    return forward(name, family(name).model)


def attending(model: nn.Module, way: str) -> nn.Module:
    """The model, changed in place."""
    if way == "eager" or model._supports_sdpa:  # Gemma 2 caps what is written out alone
        model.set_attn_implementation(way)
    return model


@pytest.mark.sampled(70)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_model_is_the_masked_one_with_fewer_numbers(name, case):
    """It says the same in either way to attend; what stays are the same numbers by name."""
    f, it = of(name, case)
    assert_places(f, it)
    assert_structure(f, it)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (f.model, it.small)]
    assert sizes[0] - sizes[1] == lost(f, case, it.masks) > 0
    for way in ("eager", "sdpa"):
        want, got = (forward(name, attending(model, way)) for model in (it.silent, it.small))
        assert (got - want).abs().max() <= 1e-9
        assert (whole(name) - want).abs().max() > 1e-2
    want, got = (forward(name, model.float()) for model in (it.silent, it.small))
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def assert_places(f: Family, it: Cut) -> None:
    """What a cut left is what its places say, also of a model in files, and they find it again."""
    there, state = places(it.silent, it.edits), state_of(it.silent)
    want, got = there.restrict(state), state_of(it.small)
    assert list(got) == list(want)
    assert all(torch.equal(got[n], want[n]) for n in want)
    assert all(p.is_contiguous() for p in it.small.parameters())
    made = there.restrict(LazyTensors(state, state.__getitem__))
    assert isinstance(made, LazyTensors)
    assert made.shapes == shapes_of(want)
    assert all(torch.equal(made[n], want[n]) for n in want)
    whole = there.expand(want, fill=float("nan"))
    assert {n: t.shape for n, t in whole.items()} == f.layout.shapes
    assert all(torch.equal(t, want[n]) for n, t in there.restrict(whole).items())
    kept = {n: ~t.isnan() for n, t in whole.items()}
    assert sum(int(k.sum()) for k in kept.values()) == sum(t.numel() for t in want.values())
    assert all(torch.equal(whole[n].nan_to_num(), state[n].where(k, 0)) for n, k in kept.items())


def assert_structure(f: Family, it: Cut) -> None:
    """The units that are left are in groups as before."""
    edits = {(e.kind, e.path): e.kept for e in it.edits}
    left = [n for n in f.layout.prunable if n in dict(it.small.named_parameters())]
    found = structure_of(it.small, left)
    for group in f.layout.structure.groups:
        units = len(edits.get((group.kind, group.path), range(len(group.parts[0].index))))
        mixture, _, number = group.path.rpartition(".experts.")
        units *= not mixture or int(number) in edits.get(("expert", mixture), (0, 1, 2))
        same = [g for g in found.groups if (g.kind, g.path) == (group.kind, group.path)]
        parts = [(p.tensor, units, p.index.shape[1]) for p in group.parts]
        assert [(p.tensor, *p.index.shape) for g in same for p in g.parts] == parts * bool(units)
    assert [b.path for b in found.blocks] == [
        b.path for b in f.layout.structure.blocks if set(b.tensors) & set(left)
    ]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_on_the_cut_model_is_one_on_the_masked_model(name):
    f, it = of(name, "both")
    there = places(f.model, it.edits)
    for model in (it.silent, it.small):
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        forward(name, model, grad=True).square().mean().backward()
        opt.step()
    want, got = there.restrict(masked(state_of(it.silent), it.masks)), state_of(it.small)
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


def seen(name: str, model: nn.Module, layout: Layout) -> Mapping[str, float]:
    """At how many positions of an example each layer computes."""

    def run(model: nn.Module, _batch: object) -> Loss:
        forward(name, model)
        return Loss(torch.tensor(0.0), 0, 1)

    return positions_of(model, layout, {"labels": torch.zeros(2)}, run)


@functools.cache
def dense(name: str) -> tuple[Mapping[str, float], int]:
    """Positions and operations of the whole model."""
    model = attending(copy.deepcopy(family(name).model), "eager")
    return seen(name, model, family(name).layout), operations(name, model)


# Of experts, whom a token is sent to depends on all that was cut before.
@pytest.mark.sampled(22)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [n for n in NAMES if n not in EXPERTS])
def test_operations_fall_by_what_was_counted(name, case):
    f, it = of(name, case)
    positions, before = dense(name)
    small = attending(it.small, "eager")
    kept = flops(it.masks, positions)
    expected = 2 * (flops(full_masks(it.masks, it.masks), positions) - kept)
    for (kind, path), units in CASES[case](f.layout).items():
        if kind == "head":  # two products of 7 queries with 7 keys (or 5) in each of two texts
            tokens = 5 if name == "vit" else 7
            keys = 5 if "crossattention" in path else tokens
            each = 2 * 2 * 2 * tokens * keys * FACTS[name][1]
            expected += len(units) * QUERIES.get(name, 1) * each
    assert before - operations(name, small) == expected > 0
    left = replace(f.layout, prunable=tuple(n for n in it.masks if n in state_of(small)))
    assert flops(full_masks(state_of(small), left.prunable), seen(name, small, left)) == kept


@pytest.mark.sampled(18)
@pytest.mark.parametrize("case", ["both", "the first block", "everything"])
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_model_can_be_copied_pickled_and_filled_by_name(name, case):
    f, it = of(name, case)
    want = forward(name, it.small)
    for again in (copy.deepcopy(it.small), pickle.loads(pickle.dumps(it.small))):
        assert torch.equal(forward(name, again), want)
    other = copy.deepcopy(f.model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    other = reshaped(other, it.edits)
    assert (forward(name, other) - want).abs().max() > 1e-2
    load_into(other, state_of(it.small))
    assert torch.equal(forward(name, other), want)


def test_ties_are_intact_and_frozen_parameters_stay_frozen():
    for name in NAMES:
        model, edits = copy.deepcopy(family(name).model), of(name, "the first block")[1].edits
        frozen = [n for i, (n, _) in enumerate(model.named_parameters()) if i % 3 == 0]
        for n in frozen:
            model.get_parameter(n).requires_grad_(False)
        small = reshaped(model, edits)
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
            it = cut(model, layout, gone)
            want = forward(name, it.silent)
            assert (forward(name, it.small) - want).abs().max() <= 1e-9
            assert (forward(name, model) - want).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_hidden_states_are_still_counted_by_block(name):
    f, it = of(name, "the first block")
    ids = torch.arange(6).reshape(1, 6)
    extra = {"decoder_input_ids": ids} if name == "t5" else {}
    said = [m(input_ids=ids, output_hidden_states=True, **extra) for m in (f.model, it.small)]
    for key in ["encoder_hidden_states", "decoder_hidden_states"] if extra else ["hidden_states"]:
        whole, left = said[0][key], said[1][key]
        assert len(whole) == len(left) == 3
        assert (whole[1] - left[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_of_activations_gives_the_same_gradients(name):
    grads = []
    for checkpointing in (False, True):
        small = of(name, "the first block")[1].small.train()
        for module in small.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        if checkpointing:
            small.activation_checkpointing_enable()
        forward(name, small, grad=True).square().mean().backward()
        grads.append([p.grad for p in small.parameters()])
    for one, two in zip(*grads, strict=True):
        assert torch.allclose(one, two) if one is not None else two is None


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
    edits = [Edit("neuron", "model.layers.0.mlp", kept) for kept in ((0, 1, 2), (0, 1))]
    small = reshaped(copy.deepcopy(family("llama").model), edits[:1])
    with pytest.raises(ValueError, match="cut already"):
        reshaped(small, edits[1:])
    with pytest.raises(ValueError, match="there are two"):
        ordered(edits)


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


@pytest.mark.sampled(12)
@pytest.mark.parametrize("case", ["both", "the first block"])
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_model_takes_low_rank_adapters_that_train_and_merge(name, case):
    peft = pytest.importorskip("peft")
    f, it = of(name, case)
    want, there = forward(name, it.small), state_of(it.small)
    tensors = [p.tensor for g in f.layout.structure.groups for p in g.parts if p.tensor in there]
    targets = [tensor.removesuffix(".weight") for tensor in tensors]
    config = peft.LoraConfig(r=2, target_modules=targets, fan_in_fan_out="gpt2" in name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = peft.get_peft_model(it.small, config).double().eval()
    assert torch.equal(forward(name, adapted), want)
    opt = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        opt.zero_grad()
        forward(name, adapted, grad=True).square().mean().backward()
        opt.step()
    trained = forward(name, adapted)
    assert (trained - want).abs().max() > 1e-3
    assert (forward(name, adapted.merge_and_unload()) - trained).abs().max() <= 1e-9


@functools.cache
def factored(name: str) -> tuple[nn.Module, Edits]:
    """The family with the layers of its first and last units as factors."""
    f = family(name)
    first = [f.layout.structure.groups[0], f.layout.structure.groups[-1]]
    layers = {part.tensor.removesuffix(".weight") for group in first for part in group.parts}
    ranks = tuple(Edit("rank", path, (4,)) for path in sorted(layers))
    return reshaped(copy.deepcopy(f.model), ranks), ranks


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", ["both", "an attention", "the first block", "all feed-forwards"])
@pytest.mark.parametrize("name", NAMES)
def test_units_are_cut_through_factors_too(name, case):
    f, (model, ranks) = family(name), factored(name)
    layout = laid_out(name, model)
    assert [g.path for g in layout.structure.groups] == [g.path for g in f.layout.structure.groups]
    it = cut(model, layout, CASES[case](layout))
    want = forward(name, it.silent)
    assert (forward(name, it.small) - want).abs().max() <= 1e-9
    assert (forward(name, model) - want).abs().max() > 1e-2
    at_once = reshaped(copy.deepcopy(f.model), [*it.edits, *ranks])
    there = places(model, it.edits).restrict(state_of(it.silent))
    assert shapes_of(state_of(at_once)) == shapes_of(state_of(it.small)) == shapes_of(there)
    load_into(at_once, there)
    assert torch.equal(forward(name, at_once), forward(name, it.small))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama-gqa"])
def test_torch_can_export_a_cut_model(name):
    for case in ("both", "the first block"):
        small = of(name, case)[1].small
        exported = torch.export.export(small, (), inputs(name, small), strict=False)
        with torch.no_grad():
            said = exported.module()(**inputs(name, small)).logits
        assert torch.equal(said, forward(name, small))
