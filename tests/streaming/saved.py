"""Small models as transformers saves them, in several files, and runs in which nobody trains."""

import functools
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fedprune import Result, RunConfig, federate
from fedprune.config import configure
from fedprune.randomness import seeded
from fedprune.streaming.packed import PackedMasks
from fedprune.tasks.tokenization import characters
from fedprune.tensors.holding import packed_bits
from fedprune.tensors.named import Masks, digest


def saved_model(
    folder: Path,
    family: str,
    dtype: torch.dtype,
    shard: str = "20KB",
    blocks: int = 3,
    width: int = 32,
) -> Path:
    """A small model of a family with its tokenizer, in files of at most a size."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    with seeded(1, "init"):
        if family == "gpt2":
            made: Any = GPT2LMHeadModel(
                GPT2Config(
                    **{"vocab_size": 98, "n_layer": blocks, "n_embd": width, "n_head": 2},
                    **{"bos_token_id": None, "eos_token_id": None},
                )
            )
        else:
            sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2}
            sizes |= {"num_hidden_layers": blocks, "num_key_value_heads": 1, "vocab_size": 98}
            made = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=family == "tied"))
    made.to(dtype).save_pretrained(folder, max_shard_size=shard)
    characters("causal").tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def saved(family: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """One that all tests of a process read and none writes to."""
    return saved_model(Path(tempfile.mkdtemp()) / "base", family, dtype, "40KB")


def _texts(folder: Path) -> Path:
    """A file of lines, beside the model's folder."""
    path = folder.parent / "texts.txt"
    lines = (
        f"Line {i} says {i * i} and {'so ' * (i % 5)}on, to number {7 * i}.\n" for i in range(60)
    )
    path.write_text("".join(lines))
    return path


def untrained(folder: Path, **changes: Any) -> RunConfig:
    """A one-shot pruning of a model in a folder, by three clients."""
    few = {"rounds": 1, "warmup": 0, "schedule": "one-shot", "local_steps": 0, "engine": "inline"}
    few |= {"sparsity": 0.5, "score": "wanda", "scope": "row", "length": 16, "clients": 3}
    few |= {"task": "language-modelling", "model": str(folder), "data": str(_texts(folder))}
    return configure({k: v for k, v in {**few, **changes}.items() if v is not None})


def reference(config: RunConfig, **how: Any) -> Result:
    """What another run is compared with; that one rehearses."""
    with patch("fedprune.client.host.try_out"):
        return federate(config, **how)


def assert_same_model(one: Result, two: Result) -> None:
    """Bit for bit, after every round."""
    assert digest(one.state.weights) == digest(two.state.weights)
    assert [x["mask_digest"] for x in one.rows] == [x["mask_digest"] for x in two.rows]
    assert one.summary["quality"] == two.summary["quality"]


def packed_masks(masks: Masks) -> PackedMasks:
    shapes = {n: m.shape for n, m in masks.items()}
    return PackedMasks(shapes, {n: packed_bits(m) for n, m in masks.items()})
