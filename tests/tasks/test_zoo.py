from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fedprune.randomness import seeded
from fedprune.structure.experts import with_experts
from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.structure.families.family import PURPOSES, Need
from fedprune.structure.layout import layout_of
from fedprune.tasks.loading import build
from fedprune.tasks.losses import next_token_loss
from fedprune.tasks.masked import masked_token_loss
from fedprune.tasks.restore import text_to_text_loss
from fedprune.tasks.tagging import tag_loss
from fedprune.tasks.task import Part
from fedprune.tasks.userdata import text_class_loss
from fedprune.tasks.zoo import families_for, heads_of
from fedprune.tensors.models import state_of
from tests.runs import same

LENGTH, VOCABULARY, CLASSES, END = 16, 40, 3, 39
LOSSES = {
    "causal": next_token_loss,
    "masked": masked_token_loss,
    "seq2seq": text_to_text_loss,
    "classify": text_class_loss,
    "tag": tag_loss,
}
CLASSIFYING = ("classify", "tag")
PAIRS = [(n, purpose) for n, f in SMALL_MODELS.items() for purpose in f.purposes if "vit" not in n]
BUILT: dict[tuple[str, str], nn.Module] = {}


def asked(model: str, depth: int | None = None, width: int | None = None) -> Any:
    return SimpleNamespace(task="some", model=model, depth=depth, width=width)


def need(purpose: str) -> Need:
    return Need(purpose, VOCABULARY, LENGTH, 0, END, CLASSES if purpose in CLASSIFYING else 0)


def model_of(name: str, purpose: str) -> nn.Module:
    if (name, purpose) not in BUILT:
        with seeded(0, "init"):
            BUILT[name, purpose] = with_experts(build(asked(name), need(purpose)))
    return BUILT[name, purpose]


def batch_for(purpose: str, rows: int = 5) -> Part:
    gen = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (rows, LENGTH), generator=gen)
    attention = torch.ones_like(ids)
    ids[-1, 10:], attention[-1, 10:] = 0, 0  # the last row is short
    labels = ids.masked_fill(attention == 0, -100)
    if purpose == "classify":
        labels = torch.arange(rows) % CLASSES
    if purpose == "tag":
        labels = torch.where(labels == -100, labels, labels % CLASSES)
    return {"inputs": ids, "attention": attention, "labels": labels}


@pytest.mark.parametrize(
    ("name", "purpose"),
    [("bert", "masked"), ("bert", "classify"), ("t5", "seq2seq"), ("t5-gated", "seq2seq")],
)
def test_what_is_not_attended_to_changes_nothing(name, purpose):
    """The other families tell padding by its id."""
    model, batch = model_of(name, purpose).eval(), batch_for(purpose)
    scribbled = dict(batch, inputs=batch["inputs"].clone())
    scribbled["inputs"][-1, 10:] = 7
    with torch.no_grad():
        losses = [LOSSES[purpose](model, b).total for b in (batch, scribbled)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-4)


def tied(model: nn.Module) -> dict[int, set[str]]:
    names: dict[int, set[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), set()).add(name)
    return names


ENCODERS = {"bert", "roberta", "distilbert", "electra"}
GEMMAS = {"gemma2", "gemma3"}
TIED = {"llama-tied", "gpt2", "t5", "t5-gated", "qwen2", "qwen3", "opt", "modernbert"}
TIED |= ENCODERS | GEMMAS
UNGATED = {"gpt2", "t5", "opt", "gpt-neox", *ENCODERS}


@pytest.mark.parametrize(("name", "purpose"), PAIRS)
def test_a_family_is_what_it_says_its_heads_spared_and_ties_counted_once(name, purpose):
    model = model_of(name, purpose)
    (head,) = heads_of(model)
    layer = model.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == (CLASSES if purpose in CLASSIFYING else VOCABULARY)
    layout = layout_of(model, output=heads_of(model))
    names = tied(model)
    assert not names[id(layer.weight)] & set(layout.prunable)
    if purpose not in CLASSIFYING:
        assert (len(names[id(layer.weight)]) > 1) == (name in TIED)
    parameters = dict(model.named_parameters())
    assert set(parameters) == {*layout.prunable, *layout.spared}
    assert sum(t.numel() for n, t in state_of(model).items() if n in parameters) == sum(
        p.numel() for p in model.parameters()
    )
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    assert not {n for t in tables for n in names[id(t)]} & set(layout.prunable)
    assert set(layout.kinds) == set(layout.prunable)
    conv1d = {n for n, kind in layout.kinds.items() if kind == "conv1d"}
    assert conv1d == (set(layout.prunable) if name == "gpt2" else set())
    assert set(layout.kinds.values()) <= {"linear", "conv1d"}
    assert 80_000 < sum(p.numel() for p in model.parameters()) < 310_000
    assert next(model.parameters()).dtype == torch.float32
    settings: Any = model.config
    assert not getattr(settings, "use_cache", False)  # DistilBERT has no word for it
    gates = ("Wi.weight", "gate_proj.weight", "gate_up_proj.weight", "wi_0.weight")
    assert any(n.endswith(gates) for n in state_of(model)) == (name not in UNGATED)
    if name == "llama-gqa":
        assert model.get_parameter("model.layers.0.self_attn.k_proj.weight").shape == (32, 64)


def test_the_default_model_is_the_one_it_always_was():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{"vocab_size": 98, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16},
        **{"max_position_embeddings": 256, "tie_word_embeddings": False, "use_cache": False},
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
    )
    with seeded(0, "init"):
        before = state_of(LlamaForCausalLM(config))
    for own in (asked("llama"), asked("llama", 2, 64)):
        with seeded(0, "init"):
            assert same(state_of(build(own, Need("causal", 98, 64))), before)


def test_every_purpose_has_a_family_and_the_default_comes_first():
    assert {p for f in SMALL_MODELS.values() for p in f.purposes} == set(PURPOSES)
    names = list(families_for("masked", "roberta"))
    assert names == ["roberta", "bert", "distilbert", "electra", "modernbert"]
    with pytest.raises(KeyError):
        families_for("masked", "gpt2")


@pytest.mark.parametrize("name", ["t5", "t5-gated"])
def test_what_can_write_writes_from_the_padding_on(name):
    model: Any = model_of(name, "seq2seq").eval()
    ids = batch_for("seq2seq")["inputs"]
    fast = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True)
    slow = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(fast, slow)
    assert fast[:, 0].tolist() == [0] * len(ids)


SIZES = [(1, 16), (3, 48), (2, 80)]


@pytest.mark.sampled(28)
@pytest.mark.parametrize(("depth", "width"), SIZES)
@pytest.mark.parametrize(("name", "purpose"), PAIRS)
def test_a_family_has_the_depth_and_width_that_are_asked(name, purpose, depth, width):
    model: Any = with_experts(build(asked(name, depth, width), need(purpose)))
    embedded = model.get_input_embeddings().weight.shape[1]
    assert embedded == (width // 2 if name == "electra" else width)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    assert stacks
    assert torch.isfinite(LOSSES[purpose](model, batch_for(purpose)).total)
    layout = layout_of(model, output=heads_of(model))
    heads = [g for g in layout.structure.groups if g.kind == "head"]
    units = {len(g.parts[0].index) for g in heads}
    assert units <= {1, width // 16, width // 32}
