"""Adapters of a model saved in bf16 or fp16: what comes out is of that type, and is measured."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedprune
from fedprune import Result, federate
from fedprune.tensors.models import state_of
from fedprune.tensors.named import digest
from tests.streaming.saved import saved_model, untrained

ADAPTED = {"adapters": "lora", "rank": 3, "local_steps": 3, "lr": 0.02, "clients": 2}


CUT = {"unit": "head-neuron", "scope": "global", "shrink": "end", "sparsity": 0.3}
CUT |= {"score": "taylor"}


def widened(folder: Path, like: Path) -> Path:
    """The same weights in float32, with the tokenizer of another folder."""
    wide = like.parent / f"{folder.name}-wide"
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(wide)
    AutoTokenizer.from_pretrained(like).save_pretrained(wide)
    return wide


def as_saved(result: Result, run: Path, dtype: torch.dtype) -> None:
    """What a run's folder and its model's hold is what it came to, in that type."""
    for folder in (run, run / "model"):
        state = state_of(fedprune.load(folder))
        assert {t.dtype for t in state.values()} == {dtype}, folder
        assert digest(state) == digest(result.state.weights)


@pytest.mark.parametrize("adapter_mean", ["factors", "stack"])
@pytest.mark.parametrize(("family", "dtype"), [("tied", torch.bfloat16), ("gpt2", torch.float16)])
def test_a_merged_model_is_that_of_float32_rounded_once(tmp_path, family, dtype, adapter_mean):
    how: dict[str, Any] = {**ADAPTED, "adapter_mean": adapter_mean}
    own = saved_model(tmp_path / "own", family, dtype)
    exact = federate(untrained(widened(own, own), **how, base="sent")).state.weights
    measured = []
    for base in ("held", "sent"):
        run = tmp_path / base
        result = federate(untrained(own, **how, base=base), folder=run)
        found = result.state.weights
        for name, value in found.items():
            assert torch.equal(value, exact[name].to(dtype)), name
        assert any((found[n].float() != exact[n]).any() for n in found), "rounding says something"
        as_saved(result, run, dtype)
        measured.append(result.summary["quality"]["final"])
    saved = load_file(run / "model" / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {dtype}
    plain = federate(untrained(widened(run / "model", own), clients=2))
    dense = plain.summary["quality"]["dense_at_pruning"]
    assert measured == [dense, dense], "what is saved, on test"


def test_what_was_trained_and_cut_is_rounded_in_its_folder(tmp_path):
    own = saved_model(tmp_path / "own", "llama", torch.bfloat16)
    trained = untrained(own, **CUT, local_steps=2, lr=0.01)
    exact = federate(trained, folder=tmp_path / "run").state.weights
    saved = state_of(fedprune.load(tmp_path / "run" / "model"))
    assert {t.dtype for t in exact.values()} == {torch.float32}
    assert all(torch.equal(saved[n].bfloat16(), t.bfloat16()) for n, t in exact.items())
    files = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {t.dtype for t in files.values()} == {torch.bfloat16}


def test_what_was_cut_before_comes_out_in_that_type_too(tmp_path):
    own = saved_model(tmp_path / "own", "llama", torch.bfloat16)
    federate(untrained(own, **CUT), folder=tmp_path / "cut")
    here = {"init": str(tmp_path / "cut"), "sparsity": 0.0, "scope": None, "score": None}
    again = untrained(own, **ADAPTED, **here, schedule=None)
    result = federate(again, folder=tmp_path / "run")
    as_saved(result, tmp_path / "run", torch.bfloat16)
