import shutil
from pathlib import Path

import pytest

from fedprune import load
from fedprune.commands.subject import subject
from fedprune.compression.exporting import Cargo, export
from fedprune.tensors import state_of


@pytest.fixture(scope="module")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    looked = subject(str(run_folder))
    folder = tmp_path_factory.mktemp("exports") / "one"
    export(Cargo(looked.model, looked.config, looked.edits, looked.masks), "safetensors", folder)
    return folder


def test_runs_models_and_exports_are_the_same_model(run_folder: Path, exported: Path, same):
    models = [load(f) for f in (run_folder, run_folder / "model", exported)]
    assert all(same(state_of(m), state_of(models[0])) for m in models)
    assert not any(m.training for m in models)


def test_an_export_knows_its_run_s_configuration(run_folder: Path, exported: Path):
    assert subject(str(exported)).config == subject(str(run_folder)).config


@pytest.mark.parametrize("name", ["model.safetensors"])
def test_a_damaged_file_is_refused_by_name(exported: Path, tmp_path: Path, name: str):
    copy = shutil.copytree(exported, tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}: damaged or foreign"):
        load(copy)


def test_a_model_that_does_not_fit_is_named(exported: Path):
    from torch import nn

    with pytest.raises(ValueError, match="does not fit the model"):
        load(exported, nn.Linear(3, 2))


def test_a_folder_with_nothing_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="neither"):
        load(tmp_path)
