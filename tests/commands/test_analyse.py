import json

import pytest
import torch

from fedprune.commands.analyse import known_of
from fedprune.commands.main import main
from fedprune.commands.subject import Subject, subject
from fedprune.export.exported_model import ExportedModel
from fedprune.export.exporting import export
from fedprune.export.quantise import Precision
from fedprune.redundancy.analysis import analysed
from fedprune.tensors.models import state_of


@pytest.mark.slow
def test_a_run_is_analysed_with_what_its_clients_see(run_folder, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert main(["analyse", str(run_folder), "--json", str(file), "--energy", "0.8"]) == 0
    shown = capsys.readouterr().out
    assert "ranks for 0.8 of the energy" in shown
    assert "effective" in shown
    found = json.loads(file.read_text())
    names = [row["name"] for row in found["matrices"]]
    assert names == ["features.0.weight", "features.4.weight", "hidden.weight"]
    masks = subject(str(run_folder)).masks
    assert [row["kept"] for row in found["matrices"]] == [int(masks[n].sum()) for n in names]
    for row in found["matrices"]:
        assert 1 <= row["rank_inputs"] <= min(row["shape"])
        assert 1 <= row["effective_rank"] <= min(row["shape"])


def test_a_pretrained_model_is_analysed_by_its_weights_alone(tmp_path, capsys):
    file = tmp_path / "found.json"
    given = ["analyse", "gpt2", "--task", "shakespeare", "--no-inputs", "--json", str(file)]
    assert main(given) == 0
    assert "Norms that fold" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert len(found["matrices"]) == 8
    assert "rank_inputs" not in found["matrices"][0]


@pytest.mark.slow
def test_what_is_put_into_a_model_is_found():
    found = subject("t5", "shakespeare-restore")
    state = state_of(found.model)
    state["encoder.block.0.layer.1.DenseReluDense.wi.weight"][3] = 0.0
    first, second = (f"decoder.block.{i}.layer.2.DenseReluDense.wo.weight" for i in (0, 1))
    state[second].copy_(state[first])
    wi = state["decoder.block.1.layer.2.DenseReluDense.wi.weight"]
    wi[5] = wi[9]
    known = known_of(Subject("t5", found.model, found.config), inputs=False)
    told = analysed(known, 0.9, 0.9999)
    assert [(e["name"], e["like"]) for e in told["equal"]] == [(second, first)]
    pairs = [(p["path"], p["left"], p["right"]) for p in told["similar"]]
    assert ("decoder.block.1.layer.2.DenseReluDense", 5, 9) in pairs
    assert torch.isfinite(torch.tensor(told["matrices"][0]["values"])).all()


@pytest.mark.parametrize("option", [["--energy", "0"], ["--similar", "1.5"]])
def test_a_part_is_a_part(option, run_folder, capsys):
    assert main(["analyse", str(run_folder), *option]) == 2
    assert "allowed: above 0" in capsys.readouterr().err


def test_a_quantised_model_is_refused_with_what_to_take(run_folder, tmp_path, capsys):
    looked = subject(str(run_folder))
    exported = ExportedModel(looked.model, looked.config, precision=Precision("int8"))
    export(exported, "safetensors", tmp_path / "int8")
    assert main(["analyse", str(tmp_path / "int8"), "--no-inputs"]) == 2
    assert "quantised; allowed: the run that it is from" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path, capsys):
    file = tmp_path / "nonexistent" / "x.json"
    assert main(["analyse", "nowhere", "--json", str(file)]) == 2
    assert f"json={str(file)!r}: there is no folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
