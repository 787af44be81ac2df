"""Adapters that begin on a model of which an earlier run cut parts out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fedprune
from fedprune import ConfigError, Result, federate
from fedprune.config import configure
from fedprune.tensors.models import state_of

KEYS: dict[str, Any] = {"task": "shakespeare", "model": "llama", "clients": 2, "engine": "inline"}
KEYS |= {"width": 16, "depth": 2, "length": 16, "score_batch": 8, "batch_size": 8}
TUNED: dict[str, Any] = {**KEYS, "rounds": 2, "adapters": "lora", "rank": 2, "local_steps": 6}
TUNED |= {"sparsity": 0.0, "lr": 0.01, "warmup": 0}


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """A run that took out heads and neurons by FLAP, which sets biases; nobody tuned."""
    out = tmp_path_factory.mktemp("cut") / "run"
    how = {"score": "flap", "sparsity": 0.3, "shrink": "end", "schedule": "one-shot"}
    how |= {"score_examples": 64}
    federate(configure({**KEYS, **how, "rounds": 1, "local_steps": 0}), folder=out)
    return out


@pytest.fixture(scope="module")
def tuned(cut, tmp_path_factory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("tuned") / "run"
    return out, federate(configure({**TUNED, "init": str(cut)}), folder=out)


@pytest.mark.slow
def test_what_was_cut_stays_cut_and_only_what_adapters_change_moves(cut, tuned):
    before, after = (state_of(fedprune.load(folder)) for folder in (cut, tuned[0]))
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved
    assert not [name for name in moved if name.endswith("bias")]
    assert not any(after[name][before[name] == 0].any() for name in moved)
    assert tuned[1].summary["kept_parameters"] <= tuned[1].summary["prunable_parameters"]


def test_they_learn_and_what_travels_is_less_than_the_model(tuned):
    """Of the cut model clients are sent what is not their base model's."""
    result, told = tuned[1], tuned[1].summary
    assert result.rows[-1]["loss"] < result.rows[0]["loss"]
    assert 0 < told["bytes_up"] < told["bytes_dense"] / 2
    bare = sum(t.numel() for n, t in result.state.weights.items() if not n.endswith("bias"))
    assert 0 < told["bytes_down"] < 4 * bare * KEYS["clients"] * TUNED["rounds"] / 2


@pytest.mark.slow
def test_its_bits_are_those_of_a_resumed_run(cut, tuned, tmp_path):
    config = configure({**TUNED, "init": str(cut)})
    federate(config.model_copy(update={"rounds": 1}), folder=tmp_path)
    longer = federate(config, folder=tmp_path, resume=True, anyway=True)
    assert longer.summary["weights_digest"] == tuned[1].summary["weights_digest"]


def test_the_folder_of_factors_fits_the_cut_layers(tuned):
    factors = load_file(tuned[0] / "adapter" / "adapter_model.safetensors")
    weights = state_of(fedprune.load(tuned[0]))
    for name, factor in factors.items():
        path = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        side = 0 if ".lora_B" in name else 1  # of the outputs, of the inputs
        assert factor.shape[side] == weights[f"{path}.weight"].shape[side]


def test_no_further_cut(cut):
    with pytest.raises(ConfigError, match=r"shrink='end': parts .* were cut out before"):
        federate(configure({**TUNED, "init": str(cut), "sparsity": 0.6, "shrink": "end"}))
