import shutil
from pathlib import Path

import pytest

from fedprune import load
from fedprune.commands.subject import subject
from fedprune.export.exported_model import ExportedModel
from fedprune.export.exporting import export
from fedprune.export.manifest import write_manifest
from fedprune.tensors.models import state_of
from tests.runs import same


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory) -> Path:
    looked = subject(str(run_folder))
    folder = tmp_path_factory.mktemp("exports") / "one"
    model = ExportedModel(looked.model, looked.config, looked.edits, looked.masks)
    export(model, "safetensors", folder)
    return folder


def test_runs_models_and_exports_are_the_same_model(run_folder, exported):
    models = [load(f) for f in (run_folder, run_folder / "model", exported)]
    assert all(same(state_of(m), state_of(models[0])) for m in models)
    assert not any(m.training for m in models)
    assert subject(str(exported)).config == subject(str(run_folder)).config


@pytest.mark.parametrize("to", [[], {}, "pickle"])
def test_a_form_of_later_days_is_named(tmp_path, to):
    write_manifest(tmp_path, {"task": "digits", "plugin": "", "to": to})
    with pytest.raises(ValueError, match=r"fedprune\.json: of a form that is not known"):
        load(tmp_path)


def test_tensors_of_another_model_are_a_line(run_folder, tmp_path):
    shutil.copy(run_folder / "model" / "model.safetensors", tmp_path)
    write_manifest(tmp_path, {"task": "shakespeare", "plugin": "", "model": "llama"})
    with pytest.raises(ValueError, match=r"^[^\n]*does not fit the model[^\n]*$"):
        load(tmp_path)


FORM = {"task": "digits", "plugin": "", "to": "safetensors"}
RANK = {"kind": "rank", "path": "hidden", "kept": [10**9]}
HEADS = [
    {"task": [], "plugin": ""},
    {"task": "digits", "plugin": {}},
    {"task": "digits", "plugin": "", "edits": 5},
    {"task": "digits", "plugin": "", "edits": [RANK]},
    {"task": "digits", "plugin": "", "depth": "x"},
    FORM,
    {**FORM, "config": 3},
    {**FORM, "config": {}, "quantised": {}},
    {"task": "shakespeare", "plugin": "", "to": "hf"},
    {"task": "digits", "plugin": "", "class_names": {"a": 1}},
]


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
@pytest.mark.parametrize("content", [b"", b"\xff" * 99, b"\x00" * 8 + b"{}"])
def test_a_folder_that_says_what_it_likes_is_a_value_error(tmp_path, head, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    write_manifest(tmp_path, head)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        load(tmp_path)
