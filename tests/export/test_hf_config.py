import copy

import pytest
import torch
from torch import nn

from fedprune.export.config_keys import Unplain
from fedprune.export.hf_config import plain_model
from fedprune.structure.edits import Edit
from fedprune.structure.surgery import reshaped
from fedprune.tensors.models import state_of
from fedprune.tensors.named import count
from tests.families import family, forward


def groups_of(name: str, kind: str, within: str = ""):
    groups = family(name).layout.structure.groups
    return [g for g in groups if g.kind == kind and f"{g.path}.".startswith(within)]


def cut(name: str, edits) -> nn.Module:
    return reshaped(copy.deepcopy(family(name).model), edits)


def every(name: str, kind: str, kept) -> tuple[Edit, ...]:
    return tuple(Edit(kind, g.path, kept) for g in groups_of(name, kind))


def without(name: str, block: str) -> tuple[Edit, ...]:
    inside = (g for kind in ("head", "neuron") for g in groups_of(name, kind, f"{block}."))
    return tuple(Edit(g.kind, g.path) for g in inside)


LIKE_LLAMA = ["llama", "llama-gqa", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"]
ENCODERS = ["bert", "roberta", "electra", "distilbert", "modernbert", "vit"]
NEURONS = [*ENCODERS, "opt", "gpt-neox", "gpt2", "t5", "t5-gated", *LIKE_LLAMA]
HEADS = {"t5": (0, 2), "t5-gated": (1, 2), **dict.fromkeys(LIKE_LLAMA, (1,))}
BLOCKS = {
    "llama": ["model.layers.0", "model.layers.1"],
    **{name: ["model.layers.0"] for name in LIKE_LLAMA[1:]},
    "t5": ["encoder.block.1", "decoder.block.0", "encoder.block.0"],
}


def agrees(name: str, edits) -> nn.Module:
    small = cut(name, edits)
    plain = plain_model(small, family(name).model, edits)
    assert type(plain) is type(family(name).model)
    assert torch.allclose(forward(name, plain), forward(name, small), atol=1e-9, rtol=1e-9)
    return plain


@pytest.mark.parametrize("name", NEURONS)
def test_equally_many_neurons_in_every_block_are_a_plain_config(name):
    edits = tuple(
        Edit("neuron", g.path, tuple(range(i % 3, i % 3 + 6)))  # not the same ones
        for i, g in enumerate(groups_of(name, "neuron"))
    )
    plain = agrees(name, edits)
    assert count(state_of(plain)) < count(state_of(family(name).model))


@pytest.mark.parametrize("name", HEADS)
def test_equally_many_heads_are_one_where_heads_have_a_size_of_their_own(name):
    agrees(name, every(name, "head", HEADS[name]) + every(name, "neuron", (0, 5)))


@pytest.mark.parametrize(("name", "block"), [(n, b) for n, all_ in BLOCKS.items() for b in all_])
def test_blocks_that_are_gone_are_numbered_anew(name, block):
    agrees(name, without(name, block))


def test_nothing_cut_is_the_same_config():
    plain = agrees("bert", ())
    assert plain.config.to_dict() == family("bert").model.config.to_dict()


RANK = Edit("rank", "model.layers.0.mlp.up_proj", (2,))


def different_t5_heads():
    groups = groups_of("t5", "head", "encoder")
    assert len(groups) == 2
    same = [e for e in every("t5", "head", (0, 1)) if e.path.startswith("decoder")]
    kept = [(0, 1), (1, 2)]
    return (*same, *(Edit("head", g.path, k) for g, k in zip(groups, kept, strict=True)))


@pytest.mark.parametrize(
    ("name", "edits", "words"),
    [
        ("bert", lambda: every("bert", "head", (0, 2)), "as many heads as fill its width"),
        ("gpt2", lambda: every("gpt2", "head", (0, 2)), "as many heads as fill its width"),
        ("bert", lambda: without("bert", "bert.encoder.layer.0"), "stays of a part that is gone"),
        ("gpt2", lambda: without("gpt2", "transformer.h.0"), "stays of a part that is gone"),
        ("llama", lambda: every("llama", "neuron", (0,))[:1], "blocks keep 1, 10 neurons"),
        ("llama", lambda: every("llama", "head", ())[:1], "blocks keep 0, 3 heads"),
        ("llama", lambda: (RANK,), "kind rank: no config says that two"),
        ("t5", different_t5_heads, "different heads of one shared table"),
    ],
)
def test_what_a_config_cannot_say_is_refused_with_the_reason(name, edits, words):
    done = edits()
    small = cut(name, done)
    with pytest.raises(Unplain, match=words):
        plain_model(small, family(name).model, done)


@pytest.mark.parametrize(
    ("kind", "words"), [("vocab", "its tokenizer gives"), ("share", "one matrix"), ("channel", "")]
)
def test_what_no_config_has_a_word_for_is_refused_by_its_kind(kind, words):
    model = family("llama").model
    with pytest.raises(Unplain, match=f"edits of kind {kind}: .*{words}"):
        plain_model(model, model, (Edit(kind, "model.embed_tokens", (0, 1)),))


def test_what_transformers_itself_refuses_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=9, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=4, head_dim=4, use_cache=False,
    )  # fmt: skip
    dense = LlamaForCausalLM(config)
    edits = (Edit("head", "model.layers.0.self_attn", (0, 1, 3)),)  # 16 is no multiple of 3
    with pytest.raises(Unplain, match="transformers refuses the config"):
        plain_model(reshaped(copy.deepcopy(dense), edits), dense, edits)


def test_another_library_s_model_has_no_config():
    with pytest.raises(Unplain, match="Linear is no model"):
        plain_model(nn.Linear(2, 2), nn.Linear(2, 2), ())


def test_values_are_copies():
    model = family("llama").model
    plain = plain_model(model, model, ())
    pairs = zip(plain.parameters(), model.parameters(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)
