"""What a client sends of a LLaMA-shaped model to be scored: ``python benchmarks/llm_bytes.py``.

The model is built on PyTorch's meta device, without memory for its weights; Wanda's statistics are
encoded as an answer is, votes for one block. SparseGPT's are counted from their shapes: nobody has
memory for them.
"""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedprune.codec.flags import pack_flags
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.parts import encode_answer
from fedprune.scores.catalog import SCORES
from fedprune.structure.layout import Layout, layout_of

SHAPES = {
    "llama-7b": (32, 4096, 11_008, 32, 32),
    "llama3-8b": (32, 4096, 14_336, 32, 8),
    "smollm2-135m": (30, 576, 1536, 9, 3),
}
"""Blocks, width, neurons, heads, heads of keys and values."""


def layout_like(name: str) -> Layout:
    """The layout of a model of this shape."""
    blocks, width, neurons, heads, shared = SHAPES[name]
    sizes = {"num_hidden_layers": blocks, "hidden_size": width, "intermediate_size": neurons}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": shared}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **sizes))
    return layout_of(model, output=("lm_head",))


def numbers(layout: Layout, score: str) -> int:
    """How many numbers a client sums for a score."""
    shapes = SCORES[score].asks[0].shapes(layout, layout.prunable, "weight", 0)
    return sum(shape.numel() for shape in shapes.values())


def coded(values: int) -> int:
    """Bytes of an answer with so many statistics."""
    answer = Answer(torch.ones(values), 1.0, {"count": 1.0})
    return encode_answer(answer, Question("score", 1, {}, {}), "fp32").size()


def votes(layout: Layout) -> int:
    """Bytes of a mask of half the weights: of a block as it is encoded, times the blocks."""
    block = layout.structure.blocks[0].tensors
    size = sum(layout.shapes[name].numel() for name in block)
    flags = torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.5
    return len(pack_flags(flags)) * len(layout.structure.blocks)


def main() -> None:
    """Print a row for every shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    print(f"{'shape':14}{'prunable':>16}{'wanda, ria':>16}{'votes':>16}{'sparsegpt':>18}")
    for name in parser.parse_args().shapes:
        layout = layout_like(name)
        hessian = 4 * numbers(layout, "sparsegpt")
        wanda = coded(numbers(layout, "wanda"))
        row = (wanda, votes(layout), hessian)
        print(f"{name:14}{layout.whole:16,}" + "".join(f"{n:14,} B" for n in row))


if __name__ == "__main__":
    main()
