"""The ServerApp that `flwr run` starts, on a grid without network."""

import errno
import json
import logging
import shlex
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.common.config import parse_config_args

import fedprune
from fedprune import RunConfig
from fedprune.commands.device_status import status_of
from fedprune.config import from_flower, overridden, recorded, to_toml
from fedprune.engines.flower import server_app
from fedprune.engines.flower.server_app import RunFailed, app
from tests.runs import played, tiny

PYPROJECT = tomllib.loads(Path("pyproject.toml").read_text())
FLAT = PYPROJECT["tool"]["flwr"]["app"]["config"]


def start(grid, **changes):
    """As Flower starts it: every key is there, "" where the user gave none."""
    assert changes.keys() <= FLAT.keys(), "Flower would refuse a key that is not in pyproject.toml"
    app(grid=grid, context=Context(1, 1, {}, RecordDict(), {**FLAT, **changes}))


QUICK = {"task": "digits", "clients": 2, "rounds": 2, "warmup": 1, "local-steps": 2, "timeout": 60}


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_flowers_keys_are_those_of_the_configuration():
    keys = {key.replace("_", "-") for key in RunConfig.model_fields}
    assert FLAT.keys() == {"toml", "resume", "resume-anyway", *keys}
    assert set(FLAT.values()) == {""}
    parts = {"serverapp": "server.app:app", "clientapp": "clients.app:app"}
    assert PYPROJECT["tool"]["flwr"]["app"]["components"] == parts


def test_a_run_on_devices(devices, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start(devices(2), **QUICK, sparsity=0.6, score="magnitude", out="here", agreement=False)
    printed = capsys.readouterr().out
    assert f"results     {tmp_path / 'here'}" in printed
    assert "13,754 parameters, 12,944 of them prunable" in printed
    summary = summary_of(tmp_path / "here")
    assert summary["sparsity"] == int(0.6 * 12944 + 0.5) / 12944
    assert summary["clients"] == 2
    model = fedprune.load(tmp_path / "here")
    assert sum(p.numel() for p in model.parameters()) == 13754


@pytest.mark.parametrize("uplink", ["int8", pytest.param("fp32", marks=pytest.mark.slow)])
def test_a_run_whose_server_is_gone_goes_on_to_the_bits_of_one_that_was_not(
    devices, tmp_path, uplink
):
    """On a SuperLink of its own: devices keep nothing of the run before in Flower's state."""
    keys = {**QUICK, "rounds": 3, "uplink": uplink, "error-feedback": uplink != "fp32"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    start(devices(2), **keys, out=str(whole))

    def end(_):
        if (broken / "rounds.jsonl").is_file():
            raise RuntimeError("database is gone")

    with pytest.raises(RuntimeError, match="database is gone"):
        start(devices(2, before=end), **keys, out=str(broken))
    with pytest.raises(RunFailed, match=r"^fedprune: rounds=9: devices took part in 3; allowed: "):
        start(devices(2), resume=str(broken), rounds=9)
    start(devices(2), resume=str(broken), timeout=50)
    first, second = summary_of(whole), summary_of(broken)
    assert second["rounds_completed"] == 3
    for key in ("weights_digest", "mask_digest", "quality"):
        assert first[key] == second[key]
    for wrong in (str(tmp_path / "nowhere"), str(whole / "checkpoint")):
        with pytest.raises(RunFailed, match=r"^fedprune: resume="):
            start(devices(2), resume=wrong)
    with pytest.raises(RunFailed, match=r"^fedprune: resume-anyway: nothing is resumed"):
        start(devices(2), **QUICK, **{"resume-anyway": True})


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_the_command_that_repeats_it_is_flower_s_own(devices, tmp_path):
    start(devices(2), **QUICK, exclude="hidden*,head*", out=str(tmp_path / "run"))
    summary = summary_of(tmp_path / "run")
    *command, run_config = shlex.split(summary["command"])
    assert command == ["flwr", "run", ".", "devices", "--stream", "--run-config"]
    assert summary["split"] == "devices' own"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Each is a device with data of its own" in page
    assert "data is split" not in page
    base, beside = from_flower(parse_config_args([run_config]))
    given = overridden(base, {**beside, "engine": "flower"})[0]
    assert given == recorded((tmp_path / "run" / "config.toml").read_text())
    assert summary["engine"] == "flower"
    (on,) = shlex.split(summary["resume"])[6:]
    assert parse_config_args([on]) == {"resume": str(tmp_path / "run")}


@pytest.mark.slow
def test_a_whole_configuration_comes_as_toml_and_flat_keys_win(workers, tmp_path):
    text = to_toml(tiny(rounds=4, engine="ray"))
    start(workers(2), toml=text, rounds=5, out=str(tmp_path / "run"))
    digest = summary_of(tmp_path / "run")["weights_digest"]
    assert digest == played(tiny()).summary["weights_digest"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsity": 1.5}, "sparsity=1.5: "),
        ({"score": "tailor"}, "score='tailor': no such score (did you mean taylor?); allowed: "),
        ({"clients": 2, "cohort": 3}, "cohort=3: more clients than there are"),
        ({"toml": "sparsity ="}, "config: not TOML"),
        ({"toml": "sparsities = 1"}, "sparsities=1: no such key"),
        ({"agreement": "perhaps"}, "agreement='perhaps': "),
        ({"model": "cnn"}, "model='cnn': neither a family of task shakespeare"),
    ],
)
def test_bad_values_are_one_line(devices, tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    grid = devices(1)
    with pytest.raises(RunFailed) as e:
        start(grid, **changes)
    assert str(e.value).startswith(f"fedprune: {words}")
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []
    assert grid.looks == 0, "refused before anything starts"
    record = logging.LogRecord("flwr", 40, "", 0, "%s raised", ("App",), (RunFailed, e.value, None))
    assert logging.getLogger("flwr").filter(record)  # what Flower's server process logs then
    assert logging.Formatter().format(record) == str(e.value)


@pytest.mark.parametrize("begun", [False, True])
def test_a_disk_that_is_full_is_one_line(devices, tmp_path, monkeypatch, begun):
    def full(_grid, _config, folder, *_):
        folder.mkdir()
        if begun:
            (folder / "config.toml").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(server_app, "run_on", full)
    with pytest.raises(RunFailed) as e:
        start(devices(1), out=str(tmp_path / "run"))
    assert str(e.value).startswith(f"fedprune: out='{tmp_path}/run': [Errno 28] No space left")
    assert ("; to go on: resume=" in str(e.value)) == begun


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_a_run_without_enough_answers_fails_and_says_so(devices, joined, folders, tmp_path):
    grid = devices(1)
    grid.contexts[3] = joined(3, 1, folders[3])
    out = tmp_path / "void"
    with pytest.raises(RunFailed, match="no round was completed"):
        start(grid, **QUICK, out=str(out), **{"min-clients": 2})
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [row["answered"] for row in rows] == [1, 1]
    assert [row["sparsity"] for row in rows] == [0.0, 0.0]
    assert len({row["weights_digest"] for row in rows}) == 1
    (failure,) = rows[0]["failures"]
    assert (failure["partition"], failure["phase"]) == (1, "hello")
    assert "no *.npz there" in failure["reason"]
    assert summary_of(out)["rounds_completed"] == 0
    assert (out / "report.html").is_file()


def test_a_run_that_nobody_could_measure_says_so_and_is_measured_when_resumed(
    devices, tmp_path, capsys
):
    def silent(_, question, reply):
        return None if question.metadata.message_type == "evaluate" else reply

    out = tmp_path / "o"
    with pytest.raises(RunFailed, match="no client could measure the model at the end"):
        start(devices(2, meddle=silent), **QUICK, out=str(out))
    capsys.readouterr()
    assert status_of(out) == 1
    said = capsys.readouterr().out
    assert "ended as asked, sparsity 0.8000; but no client could measure the model" in said
    assert f'resume="{out}"' in said
    start(devices(2), resume=str(out))
    capsys.readouterr()
    assert status_of(out) == 0
    assert "but" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("pages")
def test_a_run_that_nobody_came_to_fails_and_is_in_runs_by_default(devices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFailed, match="no round was completed"):
        start(devices(0), **QUICK)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-")
    assert (folder / "report.html").is_file()
