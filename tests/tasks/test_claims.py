"""A small file that claims a large model is refused before the model is there."""

import hashlib
import json
import resource
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedprune import RunConfig, federate, load
from fedprune.client.host import build_host
from fedprune.client.teacher import teacher_in
from fedprune.codec.coded_file import CODED_NAME, FILE_MAGIC
from fedprune.config import configure
from fedprune.structure.families.family import Need
from fedprune.tasks import claims
from fedprune.tasks.claims import CALLS, FREE_VALUES, HeldByFiles, filled_by
from fedprune.tasks.fetching import from_pretrained
from fedprune.tasks.loading import build
from fedprune.tasks.task import Shard

MB = 2**20


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
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
    start = len(FILE_MAGIC) + 4
    end = start + int.from_bytes(data[len(FILE_MAGIC) : start], "little")
    text = json.dumps({**json.loads(data[start:end]), **head}).encode()
    body = FILE_MAGIC + len(text).to_bytes(4, "little") + text + data[end:]
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
def test_what_a_file_cannot_fill_is_not_built(read, head, run, tmp_path):
    foreign = claiming(run, tmp_path / "foreign", **head)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"claims a model of more than|rank|does not fit"):
        read(foreign)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 200 * MB


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("small")
    about = GPT2Config(n_embd=16, n_layer=1, n_head=1, vocab_size=300, n_positions=16)
    GPT2LMHeadModel(about).save_pretrained(folder)
    return folder


def refused(folder: Path, said: str) -> None:
    """Loading a folder of transformers is refused, in little memory."""
    from transformers import AutoModelForCausalLM

    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said) as caught:
            from_pretrained(AutoModelForCausalLM, str(folder), "shakespeare")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1
    assert most < 30 * MB


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"n_embd": 2**16}, "claims a model of more than .* values"),
        ({"vocab_size": 10**12}, "claims a model of more than .* values"),
        ({"n_positions": 10**12}, "claims a model of more than .* values"),
        ({"n_layer": 10**3}, "claims a model of more than .* parts"),
        ({"n_layer": 10**6}, "n_layer is 1000000; allowed: up to 1024"),
        ({"num_labels": 10**9}, "num_labels is 1000000000; allowed"),
        ({"id2label": {str(i): "x" for i in range(20_000)}}, "id2label is 20000; allowed"),
        ({"text_config": {"num_hidden_layers": -(10**400)}}, "num_hidden_layers is -1000"),
        ({"n_layer": "x"}, "n_layer"),
        ({"n_head": 0}, "division"),
        ({"pad": "x" * 2**22}, "longer than 4194304 bytes"),
    ],
    ids=lambda about: str(about)[:40],
)
def test_a_config_beside_few_weights_claims_no_large_model(
    about, said, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(claims, "CALLS", 200)  # so that it takes less to build
    foreign = shutil.copytree(small, tmp_path / "foreign")
    before = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(before | about))
    refused(foreign, said)


def header(said: bytes) -> bytes:
    return len(said).to_bytes(8, "little") + said


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "its header cannot be read"),
        (b"\xff" * 8, "a header of 18446744073709551615 bytes"),
        (header(b'{"a":' * 10**5), "nested too deeply"),
        (header(b'{"a":1}'), "its header cannot be read"),
        (header(json.dumps({str(i): EMPTY for i in range(33_000)}).encode()), "room"),
        (header(json.dumps({"a": EMPTY | {"shape": [2**62, 4]}}).encode()), "room"),
        (header(b"\xff\xff"), "its header cannot be read"),
    ],
)
def test_a_header_of_a_file_of_weights_is_bounded(content, said, small, tmp_path):
    foreign = shutil.copytree(small, tmp_path / "foreign")
    (foreign / "model.safetensors").write_bytes(content)
    refused(foreign, said)


def test_a_folder_without_any_of_its_weights_is_no_pretrained_model(small, tmp_path):
    foreign = shutil.copytree(small, tmp_path / "foreign")
    (foreign / "model.safetensors").write_bytes(header(b"{}"))
    config = RunConfig(task="shakespeare", model=str(foreign), engine="inline")
    with pytest.raises(ValueError, match="hold none of its weights"):
        build(config, Need("causal", 98, 16))


def test_a_server_has_no_device_build_more_than_fits_its_memory(monkeypatch):
    monkeypatch.setattr(claims.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}.get)
    config = configure({"task": "shakespeare", "width": 4096, "depth": 64})
    shards = {0: tiny_shard()}
    tracemalloc.start()
    with pytest.raises(ValueError, match="not the memory to train"):
        build_host(config, shards, tried=True)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 30 * MB


def test_a_model_that_nobody_trains_may_be_larger(monkeypatch):
    monkeypatch.setattr(claims.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}.get)
    with claims.within_memory("it", trained=False):
        torch.empty(2**32 // 10, device="meta")
    with pytest.raises(ValueError, match="to train"), claims.within_memory("it", trained=True):
        torch.empty(2**32 // 10, device="meta")
    with pytest.raises(ValueError, match="to score"), claims.within_memory("it", trained=False):
        torch.empty(2**32 // 5, device="meta")


def tiny_shard() -> Shard:
    rows = {"input_ids": torch.zeros(4, 128, dtype=torch.long)}
    return Shard(rows, rows, rows)


@pytest.mark.parametrize(
    "made",
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
def test_what_layers_allocate_is_counted(made):
    with pytest.raises(ValueError, match="claims a model"), filled_by(HeldByFiles(0, 0), "x"):
        made()


def test_what_fits_is_built():
    with filled_by(HeldByFiles(FREE_VALUES // 4, 2), "x"):
        assert sum(p.numel() for p in nn.Linear(4000, 4000).parameters()) == 16_004_000
