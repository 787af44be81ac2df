import json
import shutil
from pathlib import Path

import pytest

from fedprune import federate
from fedprune.commands.main import main
from fedprune.commands.subject import subject
from fedprune.engines.inline import inline_port
from fedprune.records.results import write_summary
from tests.runs import tiny


@pytest.fixture
def plain(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "plain"))


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "private"
    federate(tiny(model="mlp", dp="client", dp_noise=3.0), folder=folder)
    return folder


def told(folder: Path) -> dict:
    return json.loads((folder / "audit.json").read_text())


def test_a_run_without_noise_claims_nothing_and_is_attacked_by_its_own_examples(plain, capsys):
    assert main(["audit", str(plain)]) == 0
    said = capsys.readouterr().out
    found = told(plain)
    assert found["canaries"]["total"] == found["canaries"]["covered"] == "infinity"
    assert found["canaries"]["bound"] is None
    assert list(found["membership"]) == ["threshold"]
    assert "Epsilon is infinite: nothing that left a client was noised." in said
    page = (plain / "audit.html").read_text()
    assert "Nothing of this run was noised" in page
    assert "LiRA&#39;s" not in page
    looked = subject(str(plain))
    shards = looked.task.shards(looked.config)
    threshold = found["membership"]["threshold"]
    assert threshold["members"] == sum(len(s.train["labels"]) for s in shards)
    assert threshold["others"] == sum(len(s.test["labels"]) for s in shards)
    at = threshold["tpr_at_0.01"]
    assert 0.0 <= at["low"] <= at["share"] <= at["high"] <= 1.0
    assert at["false"] <= 0.01 * at["others"]


@pytest.mark.slow
def test_a_private_run_s_claim_stands_beside_what_canaries_prove(private, capsys):
    assert main(["audit", str(private), "--canaries", "200"]) == 0
    said = capsys.readouterr().out
    found, summary = told(private)["canaries"], json.loads((private / "summary.json").read_text())
    assert found["total"] == found["covered"] == summary["privacy"]["epsilon"]
    assert 0.0 <= found["bound"] < found["covered"]
    assert found["cap"] == pytest.approx(3.487, abs=0.001)
    assert f"{found['right']} of 100" in said
    assert "at delta 1e-05" in said
    assert "The bound is not above the claim." in (private / "audit.html").read_text()


@pytest.mark.slow
def test_a_claim_that_canaries_refute_is_an_error(private, tmp_path):
    """As if the ledger had promised a tenth of what its noise is good for."""
    folder = Path(shutil.copytree(private, tmp_path / "lying"))
    summary = json.loads((folder / "summary.json").read_text())
    summary["privacy"]["epsilon"] = 0.001
    write_summary(folder, summary)
    assert main(["audit", str(folder)]) == 1
    assert "the promise is not kept" in (folder / "audit.html").read_text()


@pytest.mark.slow
def test_shadow_models_add_an_attack(plain, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["audit", str(plain), "--shadows", "6"]) == 0
    assert list(told(plain)["membership"]) == ["threshold", "LiRA"]
    said = capsys.readouterr().out
    assert "LiRA" in said
    assert "%  [" not in said
    assert " % [" in said
    assert "fedprune audit" in (plain / "audit.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shadows", "7"], "argument --shadows: '7': allowed: 0, 6, 8, 10, ..."),
        (["--shadows", "x"], "argument --shadows: 'x': allowed"),
        (["--canaries", "9"], "argument --canaries: '9': allowed: 10, 11, 12, ..."),
    ],
)
def test_bad_input_is_a_line(plain, capsys, arguments, words):
    assert main(["audit", str(plain), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_model_is_not_a_run(plain, capsys):
    assert main(["audit", str(plain / "model")]) == 2
    assert "a model, not a run; allowed: the folder of a finished run" in capsys.readouterr().err
    assert main(["audit", str(plain / "nowhere")]) == 2
    assert "nothing is there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_language_model_is_audited_by_mean_losses(tmp_path, llama):
    host, _ = llama
    federate(host.config, inline_port(host), folder=tmp_path / "text")
    assert main(["audit", str(tmp_path / "text")]) == 0
    assert told(tmp_path / "text")["membership"]["threshold"]["auc"] > 0.0
