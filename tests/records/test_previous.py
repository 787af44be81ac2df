"""A run that begins where another one ended: structure and masks stay, density never rises."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedprune import ConfigError, Result, federate
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.privacy.ledger_file import LEDGER_NAME, read_ledger
from fedprune.records.previous import continued, data_gone, on_the_earlier_task, previous_run
from fedprune.report.closing import closing_lines
from fedprune.structure.edits import Edit
from fedprune.tensors.named import count_kept
from tests.runs import tiny


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> tuple[Path, Result]:
    config = tiny(rounds=3, warmup=1, end=3, sparsity=0.6)
    folder = tmp_path_factory.mktemp("earlier") / "run"
    return folder, federate(config, inline_port(build_host(config)), folder=folder)


def again(folder: Path, **keys: Any) -> Result:
    given = {"init": str(folder), "engine": "inline", "rounds": 2, "warmup": 0, "local_steps": 1}
    config = configure({**given, **keys})
    return federate(config, inline_port(build_host(config)))


@pytest.mark.slow
def test_without_more_it_goes_on_from_the_same_weights_and_masks(before):
    folder, result = before
    found = previous_run(str(folder))
    config = configure({"init": str(folder), "engine": "inline"})
    assert (config.task, config.clients) == ("digits", 5)
    state = continued(config, found)
    assert all(torch.equal(state.weights[n], w) for n, w in result.state.weights.items())
    assert all(torch.equal(state.masks[n], m) for n, m in result.state.masks.items())
    assert state.round == 0


def test_naming_the_same_task_takes_nothing_back(before):
    """Else the task's first model would start, and keep of the earlier one what fits by chance."""
    folder, _ = before
    whole = configure({"init": str(folder), "engine": "inline"})
    named = configure({"init": str(folder), "engine": "inline", "task": "digits"})
    assert named == whole
    assert configure({"init": str(folder), "task": "shakespeare"}).model == "llama"
    gone = configure({"init": f"{folder}-gone", "task": "digits"})  # as on a device
    assert (gone.clients, gone.model) == (20, "cnn")


@pytest.mark.slow
def test_measuring_on_the_earlier_runs_data_is_in_the_ledger(before, tmp_path):
    config = configure({"init": str(before[0]), "engine": "inline", "rounds": 1, "warmup": 0})
    federate(config, folder=tmp_path)
    (line,) = (x for x in read_ledger(tmp_path / LEDGER_NAME) if x["arm"] == "before")
    assert {"totals.loss", "totals.correct", "totals.count"} <= set(line["fields"])
    assert (line["asked"], line["covered"]) == (5, False)


def test_masks_stay_and_quality_on_the_earlier_task_is_told(before):
    folder, result = before
    new = again(folder)
    assert new.summary["mask_digest"] == result.summary["mask_digest"]
    assert new.summary["weights_digest"] != result.summary["weights_digest"]
    assert {row["phase"] for row in new.rows} == {"update"}
    told = new.summary["before"]
    assert told["then"] == result.summary["quality"]["final"]
    # The same data: what it says now is the new run's own quality.
    assert told["now"]["loss"] == pytest.approx(new.summary["quality"]["final"]["loss"])
    kept, whole = count_kept(new.state.masks), new.summary["prunable_parameters"]
    assert new.summary["kept_parameters"] == kept
    assert new.summary["sparsity"] == (whole - kept) / whole, "of the dense model"


def test_pruning_goes_on_from_the_earlier_sparsity(before):
    folder, result = before
    new = again(folder, sparsity=0.8, score="magnitude")
    assert new.summary["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert all(not (m & ~result.state.masks[n]).any() for n, m in new.state.masks.items())
    assert [r["sparsity"] >= 0.6 for r in new.rows] == [True, True]


def test_less_sparsity_than_there_is_is_refused(before):
    with pytest.raises(ConfigError, match=r"sparsity=0\.3.*has 0\.599.*allowed: 0"):
        again(before[0], sparsity=0.3)


@pytest.mark.slow
def test_an_interrupted_run_is_as_good_as_its_checkpoint(before, tmp_path):
    """Of a whole run the model is as it was after the last round: so is the last checkpoint."""
    cut = tmp_path / "cut"
    shutil.copytree(before[0], cut)
    for name in ("SHA256SUMS", "summary.json", "model.fedprune"):
        (cut / name).unlink()
    whole, found = previous_run(str(before[0])), previous_run(str(cut))
    assert found.weights.keys() <= whole.weights.keys()
    assert all(torch.equal(w, whole.weights[n]) for n, w in found.weights.items())
    assert all(torch.equal(m, whole.masks[n]) for n, m in found.masks.items())
    first, second = again(before[0]).summary, again(cut).summary
    assert first["weights_digest"] == second["weights_digest"]
    for name in ("config.toml", "checkpoint/pruned.safetensors"):
        path = cut / name
        sound = path.read_bytes()
        path.write_bytes(sound[:-1] + b" ")
        with pytest.raises(ConfigError, match=f"^init=.*{Path(name).name}"):
            previous_run(str(cut))
        path.write_bytes(sound)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"init=.*allowed: the folder of a whole run") as error:
        previous_run(str(tmp_path))
    assert str(error.value).count("allowed") == 1
    with pytest.raises(ConfigError, match="init="):
        configure({"init": str(tmp_path)})


def test_a_run_of_another_model_is_refused(before):
    config = configure({"task": "shakespeare", "init": str(before[0]), "clients": 2})
    with pytest.raises(ConfigError, match="no prunable tensor in common"):
        continued(config, previous_run(str(before[0])))


def test_what_was_cut_where_the_new_model_has_nothing_is_refused(before):
    cut = replace(previous_run(str(before[0])), edits=(Edit("neuron", "bert.layer.0", (0, 1)),))
    with pytest.raises(ConfigError, match=r"init=.*'bert\.layer\.0'.*allowed: a run of the same"):
        continued(configure({"init": str(before[0])}), cut)


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_results_are_kept_where_the_earlier_data_is_gone(tmp_path):
    old, new, one, two = (tmp_path / name for name in ("old.txt", "new.txt", "one", "two"))
    for file in (old, new):
        file.write_text("\n".join(f"{file.stem} line {i} of some text" for i in range(60)))
    keys = {"task": "language-modelling", "clients": 2, "depth": 1, "width": 16, "length": 16}
    keys |= {"engine": "inline", "rounds": 1, "warmup": 0, "local_steps": 1, "end": 1}
    config = configure({**keys, "data": str(old), "sparsity": 0.5, "score": "magnitude"})
    federate(config, inline_port(build_host(config)), folder=one)
    assert data_gone(str(one)) == ""
    old.unlink()
    assert data_gone(str(one)) == str(old)
    config = configure({**keys, "init": str(one), "data": str(new)})
    summary = federate(config, inline_port(build_host(config)), folder=two).summary
    told = json.loads((two / "summary.json").read_text())["before"]
    assert told == summary["before"]
    assert told["now"] is None
    assert told["then"] is not None
    assert str(old) in told["why"]
    assert f"not measured: {told['why']}" in "\n".join(closing_lines(summary, two))
    assert "this model was not measured: " in (two / "report.html").read_text()
    assert (two / "model.fedprune").is_file()


def test_the_earlier_task_is_measured_with_its_own_weights_or_it_is_said_why(before, monkeypatch):
    folder, result = before
    told = on_the_earlier_task(previous_run(str(folder)), result.state)
    assert told["now"] == result.summary["quality"]["final"]

    def fails(*_: object) -> None:
        raise RuntimeError("no\nroom")

    monkeypatch.setattr("fedprune.client.partition_answers.answer", fails)
    told = on_the_earlier_task(previous_run(str(folder)), result.state)
    assert (told["now"], told["why"]) == (None, "RuntimeError: no room")
