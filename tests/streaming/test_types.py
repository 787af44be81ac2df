"""A model that nobody trains keeps the type of its files, in one file or in several."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fedprune
from fedprune import federate
from fedprune.config import recorded
from fedprune.export.exporting import ExportedModel, export
from fedprune.protocol.models import dense_model
from fedprune.streaming.files import INDEX, MappedFolder, tensors_in
from tests.streaming.saved import saved, untrained

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module", params=HALVES)
def run(request, tmp_path_factory) -> tuple[Path, torch.dtype, fedprune.Result]:
    """A run of a sharded model of one of the types, in its folder."""
    root, dtype = tmp_path_factory.mktemp(request.param), HALVES[request.param]
    config = untrained(saved("llama", dtype))
    return root / "run", dtype, federate(config, folder=root / "run")


@pytest.mark.slow
def test_it_stays_so_in_memory_and_on_disk(run):
    folder, dtype, result = run
    assert {t.dtype for t in result.state.weights.values()} == {dtype}
    kept = sum(int(m.sum()) for m in result.state.masks.values())
    others = sum(t.numel() for n, t in result.state.weights.items() if n not in result.state.masks)
    size = result.summary["bytes_on_disk"]["pruned"]
    assert 2 * (kept + others) < size < 3 * (kept + others)
    written = MappedFolder(tensors_in(folder / "model"))
    for of in ("", "model"):
        back = fedprune.load(folder / of)
        for name, w in result.state.weights.items():
            assert torch.equal(back.get_parameter(name), w)
            assert back.get_parameter(name).dtype == written.tensor(name).dtype == dtype


@pytest.mark.parametrize("to", ["hf", "safetensors", "sparse"])
def test_every_form_is_written_of_it(run, tmp_path, to):
    folder, _, result = run
    config = recorded((folder / "config.toml").read_text())
    exported = ExportedModel(result.model, config, masks=result.state.masks)
    assert "read again" in export(exported, to, tmp_path / "out")
    assert {p.dtype for p in result.model.parameters()} != {torch.float32}  # left as it was


READING = {"score_examples": 8, "clients": 2}
TYPED = [
    {"score": "fisher", "scope": "global", **READING},
    {"score": "sparsegpt", "scope": "layer", **READING},
    {"score": "magnitude"},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", TYPED, ids=lambda c: c["score"])
def test_masks_are_much_as_those_of_float32(changes):
    half, whole = (
        federate(untrained(saved("llama", t), **changes)) for t in (torch.bfloat16, torch.float32)
    )
    same = sum(int((half.state.masks[n] == m).sum()) for n, m in whole.state.masks.items())
    assert same > 0.95 * sum(m.numel() for m in whole.state.masks.values())


@pytest.mark.slow
def test_weights_on_the_wire_are_as_wide_as_they_are():
    half, whole = (
        federate(untrained(saved("llama", t), base="sent")).summary["bytes_down"]
        for t in (torch.bfloat16, torch.float32)
    )
    assert half < 0.6 * whole


def test_what_trains_is_float32():
    model = dense_model(untrained(saved("llama"), local_steps=1))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_tensors_of_several_files_are_those_that_safetensors_reads():
    folder = saved("gpt2")
    places, files = tensors_in(folder), sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    mapped = MappedFolder(places)
    for file in files:
        for name, t in load_file(file).items():
            assert torch.equal(mapped.tensor(name), t)
    mapped.forget()
    assert torch.equal(mapped.tensor(name), t)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "gone": lambda _, file: file.unlink(),
    "index": lambda index, _: index.write_text('{"weight_map": [1]}'),
    "outside": lambda index, _: index.write_text('{"weight_map": {"a": "../a.safetensors"}}'),
    "lacks": lambda _, file: save_file({"other": torch.ones(2)}, file),
    "cut": lambda _, file: file.write_bytes(file.read_bytes()[:-1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused_by_name(tmp_path, damage):
    folder = shutil.copytree(saved("llama"), tmp_path / "model")
    DAMAGE[damage](folder / INDEX, min(folder.glob("*.safetensors")))
    with pytest.raises((ValueError, FileNotFoundError), match=r"model.*safetensors"):
        tensors_in(folder)
