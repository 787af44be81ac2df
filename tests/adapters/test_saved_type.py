"""Adapters of a model saved in bf16 or fp16: what comes out is of that type, and is measured."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedprune
from fedprune import federate
from fedprune.tensors.models import state_of
from fedprune.tensors.named import digest
from tests.streaming.saved import saved_model, untrained

ADAPTED = {"adapters": "lora", "rank": 3, "local_steps": 3, "lr": 0.02, "clients": 2}


def widened(folder: Path, like: Path) -> Path:
    """The same weights in float32, with the tokenizer of another folder."""
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(
        like.parent / f"{folder.name}-wide"
    )
    AutoTokenizer.from_pretrained(like).save_pretrained(like.parent / f"{folder.name}-wide")
    return like.parent / f"{folder.name}-wide"


@pytest.mark.parametrize("adapter_mean", ["factors", "stack"])
@pytest.mark.parametrize("base", ["held", "sent"])
@pytest.mark.parametrize(("family", "dtype"), [("tied", torch.bfloat16), ("gpt2", torch.float16)])
def test_a_merged_model_is_that_of_float32_rounded_once(
    tmp_path, family, dtype, base, adapter_mean
):
    how: dict[str, Any] = {**ADAPTED, "base": base, "adapter_mean": adapter_mean}
    own = saved_model(tmp_path / "own", family, dtype)
    result = federate(untrained(own, **how), folder=tmp_path / "run")
    wide = federate(untrained(widened(own, own), **how))
    found, exact = result.state.weights, wide.state.weights
    for name, value in found.items():
        assert value.dtype == dtype
        assert torch.equal(value, exact[name].to(dtype)), name
    assert any((found[n].float() != exact[n]).any() for n in found), "rounding says something"

    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        assert digest(state_of(fedprune.load(folder))) == digest(found)
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {dtype}
    plain = federate(untrained(widened(tmp_path / "run" / "model", own), clients=2))
    measured = result.summary["quality"]["final"]
    assert plain.summary["quality"]["dense_at_pruning"] == measured, "what is saved, on test"


def test_what_was_trained_and_cut_is_rounded_in_its_folder(tmp_path):
    own = saved_model(tmp_path / "own", "llama", torch.bfloat16)
    cut = {"unit": "head-neuron", "scope": "global", "shrink": "end", "sparsity": 0.3}
    trained = untrained(own, **cut, score="taylor", local_steps=2, lr=0.01)
    exact = federate(trained, folder=tmp_path / "run").state.weights
    saved = state_of(fedprune.load(tmp_path / "run" / "model"))
    assert {t.dtype for t in exact.values()} == {torch.float32}
    assert all(torch.equal(saved[n].bfloat16(), t.bfloat16()) for n, t in exact.items())
    files = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {t.dtype for t in files.values()} == {torch.bfloat16}


def test_what_was_cut_before_comes_out_in_that_type_too(tmp_path):
    own = saved_model(tmp_path / "own", "llama", torch.bfloat16)
    cut = {"unit": "head-neuron", "scope": "global", "shrink": "end", "sparsity": 0.3}
    federate(untrained(own, **cut, score="taylor"), folder=tmp_path / "cut")
    here = {"init": str(tmp_path / "cut"), "sparsity": 0.0, "scope": None, "score": None}
    again = untrained(own, **ADAPTED, **here, schedule=None)
    result = federate(again, folder=tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        state = state_of(fedprune.load(folder))
        assert {t.dtype for t in state.values()} == {torch.bfloat16}, folder
        assert digest(state) == digest(result.state.weights)
