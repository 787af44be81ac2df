"""`--track`: what a run says of its rounds is what its trackers hold."""

import csv
import importlib.util
import json
import struct

import pytest

from fedprune import ConfigError, federate
from fedprune.commands.run import main
from fedprune.report.board import scalars
from fedprune.report.result import Result
from fedprune.report.tracking import CsvTracker
from tests.runs import cut_short, tiny

ARMS = {"rounds": 2, "warmup": 0, "end": 2, "baselines": "dense"}


def told(result: Result) -> dict[tuple[str, int], float]:
    """Every value that a tracker is to hold, by its name and round."""
    values = {
        (name if row["arm"] == "pruned" else f"dense/{name}", row["round"]): value
        for row in result.rows
        for name, value in scalars(row).items()
    }
    quality = result.summary["quality"]
    for prefix, arm in (("", "final"), ("dense/", "dense")):
        tests = scalars({**quality[arm], "count": None})
        values |= {(f"{prefix}test/{name}", 2): value for name, value in tests.items()}
    return values


def test_a_csv_file_has_all_rows_of_a_resumed_run(tmp_path):
    folder = tmp_path / "run"
    config = tiny(**ARMS, track="csv")
    with pytest.raises(ConfigError, match="keeps no folder"):
        federate(config)
    cut_short(config, folder, 1)
    result = federate(config, folder=folder, resume=True)
    held = {
        (name, int(line["round"])): float(value)
        for line in csv.DictReader((folder / "rounds.csv").open(newline=""))
        for name, value in line.items()
        if name != "round" and value
    }
    assert held == pytest.approx(told(result))


def test_a_missing_library_is_one_line_before_anything_starts(monkeypatch, capsys, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "mlflow" else real(n, *a)
    )
    out = tmp_path / "run"
    assert main(["--task", "digits", "--track", "csv,mlflow", "--out", str(out)]) == 2
    line = "run.py: error: track='mlflow': mlflow is not installed; allowed: pip install"
    assert capsys.readouterr().err.startswith(line)
    assert not out.exists()


def test_a_library_that_refuses_is_one_line_before_round_one(monkeypatch, tmp_path):
    def refuse(*_given):
        raise RuntimeError("no account")

    monkeypatch.setattr(CsvTracker, "begin", refuse)
    monkeypatch.setattr(CsvTracker, "end", refuse)  # nothing was begun that could be ended
    with pytest.raises(ConfigError, match="no account; allowed"):
        federate(tiny(**ARMS, track="csv"), folder=tmp_path / "run")


@pytest.mark.slow
def test_wandb_and_mlflow_hold_the_rows_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    result = federate(tiny(**ARMS, track=("wandb", "mlflow")), folder=folder)
    assert _in_mlflow(folder) == pytest.approx(told(result))
    assert _in_wandb(folder) == pytest.approx(told(result))


def _in_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient((folder / "mlruns").as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("fedprune").experiment_id])
    assert (run.info.status, run.data.params["clients"]) == ("FINISHED", "5")
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {(name, m.step): m.value for name, of in history.items() for m in of}


def _in_wandb(folder):
    from wandb.proto import wandb_internal_pb2

    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    held = {}
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        line = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        names = [n for n in line if n != "round" and not n.startswith("_")]
        held |= {(n, line["round"]): line[n] for n in names}
    return held


def _records(data, block=32768):
    """The records of W&B's file: LevelDB's log format after a header of seven bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # nothing begins in what is left of a block
            at += block - at % block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""
