import json

import pytest

from fedprune.commands.main import main
from fedprune.commands.measure import on_disk
from fedprune.commands.subject import subject
from fedprune.export.exported_model import ExportedModel
from fedprune.export.exporting import export
from fedprune.export.manifest import write_manifest

QUICK = ["--no-memory", "--repeats", "2", "--warmup", "1", "--batch", "2"]


def measured(capsys, *arguments: str):
    assert main(["measure", *arguments, *QUICK, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    return list(told["models"].values()), told


def test_a_run_beside_its_dense_model(run_folder, capsys):
    (mine, dense), told = measured(capsys, str(run_folder))
    summary = json.loads((run_folder / "summary.json").read_text())
    assert mine["quality"] == summary["quality"]["final"]
    assert dense["quality"] == summary["quality"]["dense"]
    assert mine["bytes_on_disk"] == (run_folder / "model.fedprune").stat().st_size
    assert dense["bytes_sparse"] > 2 * mine["bytes_sparse"]
    assert "multiplies by every one" in told["notes"][0]
    assert "dense baseline" in told["notes"][1]
    assert mine["speedup"][1] <= mine["speedup"][0] <= mine["speedup"][2]


@pytest.mark.slow
def test_a_model_folder_is_measured_on_the_test_split_of_its_task(run_folder, capsys):
    (mine, other), _ = measured(
        capsys, str(run_folder / "model"), "--baseline", str(run_folder), "--threads", "2"
    )
    assert mine["nonzeros"] == other["nonzeros"]
    assert mine["bytes_on_disk"] == on_disk(run_folder / "model") > other["bytes_on_disk"]
    # The same examples, whoever holds them; a folder does not know how the run dealt them.
    assert mine["quality"]["accuracy"] == pytest.approx(other["quality"]["accuracy"], abs=0.15)


def test_the_table_says_the_same(run_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["measure", str(run_folder), *QUICK]) == 0
    said = capsys.readouterr().out
    for words in ("done", "dense (baseline)", "parameters", "sparse file", "FLOPs"):
        assert words in said
    assert "test accuracy" in said
    assert "Nothing was cut out" in said


def test_an_example_can_be_longer(capsys):
    given = ["llama", "--task", "shakespeare", "--no-quality", "--tokens"]
    (short, _), _ = measured(capsys, *given, "16")
    (long, _), _ = measured(capsys, *given, "32")
    assert short["quality"] is None
    assert long["flops"] > 2 * short["flops"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "0"], "argument --batch: '0': allowed: 1, 2, 3, ..."),
        (["--repeats", "x"], "argument --repeats: 'x': allowed: 1, 2, 3, ..."),
        (["--tokens", "12"], "length"),
        (["--baseline", "nowhere"], "nothing is there"),
    ],
)
def test_bad_input_is_a_line(run_folder, capsys, arguments, words):
    assert main(["measure", str(run_folder), "--no-memory", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_baseline_of_another_task_is_a_line(run_folder, tmp_path, capsys):
    other = subject("llama", "shakespeare")
    export(ExportedModel(other.model, other.config), "safetensors", tmp_path / "llama")
    given = ["measure", str(tmp_path / "llama"), "--baseline", str(run_folder)]
    assert main([*given, *QUICK]) == 2
    said = capsys.readouterr().err
    assert f"baseline={str(run_folder)!r}: it is of task digits, " in said
    assert said.count("\n") == 1


def test_a_graph_is_refused_without_options_of_another_command(tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_manifest(tmp_path, {"task": "digits", "plugin": "", "to": "onnx"})
    assert main(["measure", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert ("an ONNX graph" in said, "--to" in said) == (True, False)
