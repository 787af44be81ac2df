"""A small file that claims a large model is refused before the model is there."""

import hashlib
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedprune import RunConfig, federate, load
from fedprune.client.teacher import teacher_in
from fedprune.codec.coded_file import CODED_NAME, MAGIC
from fedprune.tasks.claims import CALLS, FREE, filled_by
from fedprune.tasks.loading import from_pretrained

MB = 2**20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims") / "run"
    keys: dict[str, Any] = {"rounds": 1, "warmup": 0, "end": 1, "cohort": 2, "local_steps": 1}
    config = RunConfig(
        task="shakespeare", engine="inline", clients=2, depth=1, width=16, length=16, **keys
    )
    federate(config, folder=folder)
    return folder


def claiming(source: Path, to: Path, **head: Any) -> Path:
    """The model of a run with other words in its head, and a checksum that fits them."""
    data = (source / CODED_NAME).read_bytes()[:-32]
    start = len(MAGIC) + 4
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    text = json.dumps({**json.loads(data[start:end]), **head}).encode()
    body = MAGIC + len(text).to_bytes(4, "little") + text + data[end:]
    to.mkdir()
    (to / CODED_NAME).write_bytes(body + hashlib.sha256(body).digest())
    return to


LARGE = [
    {"width": 4096, "depth": 64},
    {"width": 4096},
    {"depth": 64, "width": 1024},
    {"edits": [{"kind": "rank", "path": "lm_head", "kept": [2**30], "like": ""}]},
]


@pytest.mark.parametrize("head", LARGE, ids=str)
@pytest.mark.parametrize("read", [load, teacher_in])
def test_what_a_file_cannot_fill_is_not_built(
    read: Callable[[Any], Any], head: dict[str, Any], run: Path, tmp_path: Path
):
    foreign = claiming(run, tmp_path / "foreign", **head)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"claims a model of more than|rank|does not fit"):
        read(foreign)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 200 * MB


def test_a_config_beside_few_weights_claims_no_large_model(tmp_path: Path):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    small = GPT2Config(n_embd=16, n_layer=1, n_head=1, vocab_size=300, n_positions=16)
    GPT2LMHeadModel(small).save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"n_embd": 2**16, "n_layer": 10**6}))
    with pytest.raises(FileNotFoundError, match="claims a model of more than"):
        from_pretrained(AutoModelForCausalLM, str(tmp_path), "shakespeare")


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(2**20, 2**20),
        lambda: torch.zeros(2**16, 2**16),
        lambda: torch.randn((2**16, 2**16)),
        lambda: torch.full((2**16, 2**16), 1.0),
        lambda: torch.arange(2**40),
        lambda: torch.eye(2**20),
        lambda: torch.ones(size=(2**16, 2**16)),
        lambda: torch.randint(0, 2, (2**16, 2**16)),
        lambda: [torch.empty(0) for _ in range(CALLS + 1)],
        lambda: [nn.Linear(1000, 1000) for _ in range(30)],
    ],
)
def test_what_layers_allocate_is_counted(build: Callable[[], Any]):
    with pytest.raises(ValueError, match="claims a model"), filled_by(0, "x"):
        build()


def test_what_fits_is_built():
    with filled_by(FREE // 4, "x"):
        assert sum(p.numel() for p in nn.Linear(4000, 4000).parameters()) == 16_004_000
