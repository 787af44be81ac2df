"""A model from files that nobody trains is read where it lies, whatever competes: the same bits."""

from typing import Any

import pytest
import torch

from fedprune import federate
from fedprune.config.streamed import only_reads, why_unstreamed
from fedprune.tensors.named import digest
from tests.streaming.saved import saved_model, untrained

FEW = {"score_examples": 8, "clients": 2, "stream": "off"}
COMPETING: list[dict[str, Any]] = [
    {"score": "wanda", "scope": "global"},
    {"score": "ria", "scope": "global", "schedule": "cubic", "rounds": 3, "end": 2},
    {"score": "magnitude", "scope": "global", "score_examples": None},
    {"score": "activation", "scope": "owl"},
    {"score": "wanda", "scope": "global", "combine": "votes"},
    {"score": "wanda", "scope": "global", "unit": "head-neuron", "shrink": "end"},
    {"score": "flap", "scope": "global", "unit": "head-neuron", "shrink": "end"},
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("changes", COMPETING, ids=str)
@pytest.mark.parametrize("family", ["tied", "gpt2"])
def test_weights_read_from_files_make_the_same_model(tmp_path, monkeypatch, family, changes):
    folder = saved_model(tmp_path / "base", family, torch.bfloat16)
    config = untrained(folder, **{**FEW, **changes})
    assert why_unstreamed(config) or changes.get("shrink") == "end", "else it is streamed elsewhere"
    assert only_reads(config)
    lazy = federate(config, folder=tmp_path / "lazy")
    for place in ("run", "opening", "protocol.held_weights"):
        monkeypatch.setattr(f"fedprune.{place}.only_reads", lambda _: False)
    copied = federate(config, folder=tmp_path / "copied")
    assert digest(lazy.state.weights) == digest(copied.state.weights)
    assert [x["mask_digest"] for x in lazy.rows] == [x["mask_digest"] for x in copied.rows]
    assert lazy.summary["quality"] == copied.summary["quality"]
    for name in ("model.fedprune", "model/model.safetensors"):
        assert (tmp_path / "lazy" / name).read_bytes() == (tmp_path / "copied" / name).read_bytes()
