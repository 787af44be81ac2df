"""Tiny transformers of every family that is recognised, built once in a process."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.structure.experts import with_experts
from fedprune.structure.layout import Layout, layout_of
from fedprune.tensors.models import state_of

SYMBOLS = 19
USUAL, SHARED = (3, 4, 2, 2, 10, 2), (2, 4, 2, 2, 10, 2)
# Family: heads in an attention, size of a head, attentions, feed-forwards, neurons, blocks.
FACTS: dict[str, tuple[int, int, int, int, int, int]] = {
    **dict.fromkeys(("bert", "roberta", "gpt2"), USUAL),
    "gpt2-cross": (3, 4, 4, 2, 10, 2),
    **dict.fromkeys(("t5", "t5-gated"), (3, 5, 6, 4, 10, 4)),
    "llama": USUAL,
    **dict.fromkeys(("llama-gqa", "mistral"), SHARED),
    "qwen2": USUAL,
    "qwen3": SHARED,
    **dict.fromkeys(("phi3", "opt", "opt-post", "gpt-neox", "distilbert", "electra"), USUAL),
    **dict.fromkeys(("vit", "gemma2"), USUAL),
    "gemma3": SHARED,
    "modernbert": USUAL,
    "mixtral": (2, 4, 2, 6, 10, 2),
    "qwen2-moe": (2, 4, 2, 5, 10, 2),
    "qwen3-moe": (2, 4, 2, 4, 10, 2),
}
# Experts of a block, of which a token is sent to two.
EXPERTS = dict.fromkeys(("mixtral", "qwen2-moe", "qwen3-moe"), 3)
# Queries that share a key and a value: units are their groups.
QUERIES = {**dict.fromkeys((*EXPERTS, "mistral", "qwen3", "phi3", "gemma3"), 2), "llama-gqa": 3}
RMS, LAYER_NORM = (12, 12), (24, 24)
# Numbers that go with a whole attention and with a whole feed-forward: norms before and in it.
NORMS = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "electra", "opt-post"), (0, 0)),
    **dict.fromkeys(("gemma2", "vit", "opt", "gpt-neox", "gpt2", "gpt2-cross"), LAYER_NORM),
    "gemma3": (32, 24),
    **dict.fromkeys(("qwen3", "qwen3-moe"), (20, 12)),
}
OUTPUT = {
    "bert": "cls.predictions.decoder",
    "roberta": "lm_head.decoder",
    "distilbert": "vocab_projector",
    "electra": "generator_lm_head",
    "modernbert": "decoder",
    "vit": "classifier",
}


TEXTS = [name for name in FACTS if name not in ("gpt2-cross", "vit")]
"""Those that read nothing but texts."""


@dataclass(frozen=True)
class Family:
    """A model in eval mode and float64, whose masks a test sets and takes back."""

    name: str
    model: nn.Module
    layout: Layout

    def logits(self, masks: Mapping[str, Tensor]) -> Tensor:
        """What it says with the masked weights at 0.0; the weights are as before afterwards."""
        state = state_of(self.model)
        before = {name: state[name].clone() for name in masks}
        try:
            for name, mask in masks.items():
                state[name].mul_(mask)
            return forward(self.name, self.model)
        finally:
            for name, value in before.items():
                state[name].copy_(value)


def inputs(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Two texts, or images, for a model of the family."""
    if name == "vit":
        pixels = torch.linspace(-1, 1, 2 * 36).reshape(2, 1, 6, 6)
        return {"pixel_values": pixels.sin().to(model.dtype)}
    ids = torch.arange(14).reshape(2, 7) % SYMBOLS
    given: dict[str, Tensor] = {"input_ids": ids}
    if name.startswith("t5"):
        given["decoder_input_ids"] = ids.flip(1)
    if name == "gpt2-cross":
        states = torch.linspace(-1, 1, 2 * 5 * 12).reshape(2, 5, 12)
        given["encoder_hidden_states"] = states.to(model.dtype)
    return given


def forward(name: str, model: nn.Module, *, grad: bool = False) -> Tensor:
    """The logits of a model of the family, whole or cut."""
    with torch.set_grad_enabled(grad):
        return model(**inputs(name, model)).logits


@functools.cache
def family(name: str) -> Family:
    with torch.random.fork_rng():
        # With 7 no token is sent to one of the experts.
        torch.manual_seed(8 if name == "qwen3-moe" else 7)
        model = with_experts(plain(name)).double().eval()
        for p in model.parameters():  # biases and norms too: none may be 0 by chance of its start
            p.data.add_(torch.randn_like(p) * 0.3)
    model.requires_grad_(True)
    return Family(name, model, laid_out(name, model))


def laid_out(name: str, model: nn.Module) -> Layout:
    """The layout of a model of the family, whole or cut."""
    return layout_of(model, output=(OUTPUT.get(name, "lm_head"),))


def plain(name: str) -> nn.Module:
    """A model of the family as transformers begins it."""
    import transformers

    heads = FACTS[name][0]
    bert = {
        "vocab_size": SYMBOLS, "hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 10,
        "num_attention_heads": heads, "max_position_embeddings": 16,
    }  # fmt: skip
    gpt2 = {
        "vocab_size": SYMBOLS, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": heads,
        "n_inner": 10, "bos_token_id": None, "eos_token_id": None, "use_cache": False,
    }  # fmt: skip
    t5 = {
        "vocab_size": SYMBOLS, "d_model": 12, "d_kv": 5, "d_ff": 10, "num_layers": 2,
        "num_heads": heads, "use_cache": False, "decoder_start_token_id": 0,
    }  # fmt: skip
    llama = {
        "vocab_size": SYMBOLS, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
        "head_dim": 4, "use_cache": False, "max_position_embeddings": 16,
        "num_attention_heads": heads * QUERIES.get(name, 1), "num_key_value_heads": heads,
    }  # fmt: skip
    no_marks = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    ids = {"cls_token_id": None, "sep_token_id": None, "global_attn_every_n_layers": 2}
    gemma = {
        "query_pre_attn_scalar": 4, "sliding_window": 3, **no_marks,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    vit = {
        "hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 10,
        "num_attention_heads": heads, "image_size": 6, "patch_size": 3, "num_channels": 1,
        "num_labels": 5,
    }  # fmt: skip
    opt = {
        "vocab_size": SYMBOLS, "hidden_size": 12, "num_hidden_layers": 2, "ffn_dim": 10,
        "num_attention_heads": heads, "max_position_embeddings": 16, "word_embed_proj_dim": 12,
        "use_cache": False, **no_marks,
    }  # fmt: skip
    unlike = {"enable_bias": False, "activation_function": "gelu"}
    distilbert = {
        "vocab_size": SYMBOLS, "dim": 12, "n_layers": 2, "hidden_dim": 10, "n_heads": heads,
        "max_position_embeddings": 16,
    }  # fmt: skip
    moe = {
        **llama, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
    }  # fmt: skip
    beside = {"shared_expert_intermediate_size": 10, "mlp_only_layers": [0]}
    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    modern = {**bert, **ids, **no_marks, "pad_token_id": 0, "local_attention": 4}
    post = {**opt, "word_embed_proj_dim": 8, "do_layer_norm_before": False}
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "bert": ("BertForMaskedLM", bert),
        "roberta": ("RobertaForMaskedLM", bert),
        "gpt2": ("GPT2LMHeadModel", gpt2),
        "gpt2-cross": ("GPT2LMHeadModel", {**gpt2, "add_cross_attention": True}),
        "t5": ("T5ForConditionalGeneration", t5),
        "t5-gated": ("T5ForConditionalGeneration", {**t5, "feed_forward_proj": "gated-gelu"}),
        "llama": ("LlamaForCausalLM", llama),
        "llama-gqa": ("LlamaForCausalLM", llama),
        "mistral": ("MistralForCausalLM", {**llama, "sliding_window": 3}),
        "qwen2": ("Qwen2ForCausalLM", {**llama, **windows}),
        "qwen3": ("Qwen3ForCausalLM", llama),
        "mixtral": ("MixtralForCausalLM", {**llama, "num_local_experts": 3, "sliding_window": 3}),
        "qwen2-moe": ("Qwen2MoeForCausalLM", {**moe, **beside}),
        "qwen3-moe": (
            "Qwen3MoeForCausalLM", {**moe, "decoder_sparse_step": 2, "norm_topk_prob": True},
        ),
        "opt": ("OPTForCausalLM", {**opt, **unlike}),
        "opt-post": ("OPTForCausalLM", post),
        "gpt-neox": ("GPTNeoXForCausalLM", {**bert, "use_cache": False}),
        "distilbert": ("DistilBertForMaskedLM", distilbert),
        "electra": ("ElectraForMaskedLM", {**bert, "embedding_size": 8}),
        "vit": ("ViTForImageClassification", vit),
        "gemma2": ("Gemma2ForCausalLM", {**llama, **gemma}),
        "gemma3": ("Gemma3ForCausalLM", {**llama, **gemma}),
        "modernbert": ("ModernBertForMaskedLM", modern),
        "phi3": ("Phi3ForCausalLM", {**llama, **no_marks}),
    }  # fmt: skip
    kind, given = made[name]
    model: Any = getattr(transformers, kind)
    return model(model.config_class(**given))
