"""Adapters that begin on a model of which an earlier run cut parts out."""

from pathlib import Path
from typing import Any

import pytest
import torch

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
    for name in moved:
        assert not after[name][before[name] == 0].any()
    assert tuned[1].summary["kept_parameters"] <= tuned[1].summary["prunable_parameters"]


def test_they_learn_and_send_less_than_the_model(tuned):
    losses = [row["loss"] for row in tuned[1].rows]
    assert losses[-1] < losses[0]
    assert 0 < tuned[1].summary["bytes_up"] < tuned[1].summary["bytes_dense"] / 2


def test_of_the_cut_model_clients_are_sent_what_is_not_their_base_models(tuned):
    (_, result), rounds = tuned, 2
    bare = sum(t.numel() for n, t in result.state.weights.items() if not n.endswith("bias"))
    assert 0 < result.summary["bytes_down"] < 4 * bare * KEYS["clients"] * rounds / 2


@pytest.mark.slow
def test_its_bits_are_those_of_a_resumed_run(cut, tuned, tmp_path):
    half = tmp_path / "half"
    config = configure({**TUNED, "init": str(cut), "rounds": 1})
    federate(config, folder=half)
    longer = federate(
        config.model_copy(update={"rounds": 2}), folder=half, resume=True, anyway=True
    )
    assert longer.summary["weights_digest"] == tuned[1].summary["weights_digest"]


def test_the_folder_of_factors_fits_the_cut_layers(tuned):
    from safetensors.torch import load_file

    factors = load_file(tuned[0] / "adapter" / "adapter_model.safetensors")
    weights = state_of(fedprune.load(tuned[0]))
    for name, factor in factors.items():
        path = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        outputs, inputs = weights[f"{path}.weight"].shape
        assert factor.shape[0 if ".lora_B" in name else 1] == (
            outputs if ".lora_B" in name else inputs
        )


def test_no_further_cut(cut):
    with pytest.raises(ConfigError, match=r"shrink='end': parts .* were cut out before"):
        federate(configure({**TUNED, "init": str(cut), "sparsity": 0.6, "shrink": "end"}))
