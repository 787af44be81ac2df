"""Tiny transformers of every family that is recognised, built once in a process."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.structure.experts import with_experts
from fedprune.structure.layout import Layout, layout_of
from fedprune.tensors.models import state_of

SYMBOLS = 19
# Family: heads in an attention, size of a head, attentions, feed-forwards, neurons, blocks.
FACTS: dict[str, tuple[int, int, int, int, int, int]] = {
    "bert": (3, 4, 2, 2, 10, 2),
    "roberta": (3, 4, 2, 2, 10, 2),
    "gpt2": (3, 4, 2, 2, 10, 2),
    "gpt2-cross": (3, 4, 4, 2, 10, 2),
    "t5": (3, 5, 6, 4, 10, 4),
    "t5-gated": (3, 5, 6, 4, 10, 4),
    "llama": (3, 4, 2, 2, 10, 2),
    "llama-gqa": (2, 4, 2, 2, 10, 2),
    "mistral": (2, 4, 2, 2, 10, 2),
    "qwen2": (3, 4, 2, 2, 10, 2),
    "qwen3": (2, 4, 2, 2, 10, 2),
    "phi3": (3, 4, 2, 2, 10, 2),
    "opt": (3, 4, 2, 2, 10, 2),
    "opt-post": (3, 4, 2, 2, 10, 2),
    "gpt-neox": (3, 4, 2, 2, 10, 2),
    "distilbert": (3, 4, 2, 2, 10, 2),
    "electra": (3, 4, 2, 2, 10, 2),
    "vit": (3, 4, 2, 2, 10, 2),
    "gemma2": (3, 4, 2, 2, 10, 2),
    "gemma3": (2, 4, 2, 2, 10, 2),
    "modernbert": (3, 4, 2, 2, 10, 2),
    "mixtral": (2, 4, 2, 6, 10, 2),
    "qwen2-moe": (2, 4, 2, 5, 10, 2),
    "qwen3-moe": (2, 4, 2, 4, 10, 2),
}
# Experts of a block, of which a token is sent to two.
EXPERTS = {"mixtral": 3, "qwen2-moe": 3, "qwen3-moe": 3}
SEEDS = {"qwen3-moe": 8}  # with 7 no token is sent to one of the experts
# Queries that share a key and a value: units are their groups.
QUERIES = {
    **dict.fromkeys(("mixtral", "qwen2-moe", "qwen3-moe"), 2),
    "llama-gqa": 3,
    "mistral": 2,
    "qwen3": 2,
    "phi3": 2,
    "gemma3": 2,
}
# Numbers that go with a whole attention and with a whole feed-forward: norms before and in it.
NORMS = {
    "bert": (0, 0),
    "roberta": (0, 0),
    "distilbert": (0, 0),
    "electra": (0, 0),
    "opt-post": (0, 0),
    "gemma2": (24, 24),
    "gemma3": (32, 24),
    "vit": (24, 24),
    "opt": (24, 24),
    "gpt-neox": (24, 24),
    "gpt2": (24, 24),
    "gpt2-cross": (24, 24),
    "qwen3": (20, 12),
    "qwen3-moe": (20, 12),
}
RMS = (12, 12)
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
        torch.manual_seed(SEEDS.get(name, 7))
        model = with_experts(_built(name)).double().eval()
        for p in model.parameters():  # biases and norms too: none may be 0 by chance of its start
            p.data.add_(torch.randn_like(p) * 0.3)
    model.requires_grad_(True)
    output = OUTPUT.get(name, "lm_head")
    return Family(name, model, layout_of(model, output=(output,)))


def _built(name: str) -> nn.Module:
    import transformers as t

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
    plain = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    ids = {"cls_token_id": None, "sep_token_id": None, "global_attn_every_n_layers": 2}
    gemma = {
        "query_pre_attn_scalar": 4, "sliding_window": 3, **plain,
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
        "use_cache": False, **plain,
    }  # fmt: skip
    unlike = {"enable_bias": False, "activation_function": "gelu"}
    distilbert = {
        "vocab_size": SYMBOLS, "dim": 12, "n_layers": 2, "hidden_dim": 10, "n_heads": heads,
        "max_position_embeddings": 16,
    }  # fmt: skip
    moe = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 10}
    beside = {"shared_expert_intermediate_size": 10, "mlp_only_layers": [0]}
    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    made = {
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(**bert)),
        "roberta": lambda: t.RobertaForMaskedLM(t.RobertaConfig(**bert)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt2)),
        "gpt2-cross": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt2, add_cross_attention=True)),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**t5)),
        "t5-gated": lambda: t.T5ForConditionalGeneration(
            t.T5Config(**t5, feed_forward_proj="gated-gelu")
        ),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama)),
        "llama-gqa": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**llama, sliding_window=3)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**llama, **windows)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**llama)),
        "mixtral": lambda: t.MixtralForCausalLM(
            t.MixtralConfig(**llama, num_local_experts=3, sliding_window=3)
        ),
        "qwen2-moe": lambda: t.Qwen2MoeForCausalLM(t.Qwen2MoeConfig(**llama, **moe, **beside)),
        "qwen3-moe": lambda: t.Qwen3MoeForCausalLM(
            t.Qwen3MoeConfig(**llama, **moe, decoder_sparse_step=2, norm_topk_prob=True)
        ),
        "opt": lambda: t.OPTForCausalLM(t.OPTConfig(**opt, **unlike)),
        "opt-post": lambda: t.OPTForCausalLM(
            t.OPTConfig(**opt | {"word_embed_proj_dim": 8}, do_layer_norm_before=False)
        ),
        "gpt-neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**bert, use_cache=False)),
        "distilbert": lambda: t.DistilBertForMaskedLM(t.DistilBertConfig(**distilbert)),
        "electra": lambda: t.ElectraForMaskedLM(t.ElectraConfig(**bert, embedding_size=8)),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**vit)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**llama, **gemma)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**llama, **gemma)),
        "modernbert": lambda: t.ModernBertForMaskedLM(
            t.ModernBertConfig(**bert, **ids, **plain | {"pad_token_id": 0}, local_attention=4)
        ),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**llama, **plain)),
    }
    return made[name]()
