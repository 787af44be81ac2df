"""Devices: a SuperLink and SuperNodes as processes of their own, each with its own data."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flower import ROOT, Flower, wait_until

import fedprune

pytestmark = pytest.mark.slow

RUN = {"task": "digits", "clients": 2, "rounds": 2, "warmup": 1, "local-steps": 3, "timeout": 120}


def keys(**changes: Any) -> str:
    """The run config as one types it."""
    given = {**RUN, **{key.replace("_", "-"): value for key, value in changes.items()}}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in given.items())


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[Flower]:
    made = Flower(tmp_path / "flower")
    yield made
    made.stop()
    assert made.running() == []


def rows_of(folder: Path) -> list[dict[str, object]]:
    path = folder / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_two_devices_prune_a_model_together(flower: Flower, folders: list[Path]):
    address = flower.superlink()
    for partition in (0, 1):
        flower.supernode(address, partition, folders[partition])
    config = keys(min_clients=2, out="runs/two")
    done = flower.flwr("run", str(ROOT), "--stream", "--run-config", config)
    out = flower.folder / "runs" / "two"
    assert f"results     {out}" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sparsity"] == int(0.8 * 12944 + 0.5) / 12944
    assert (summary["rounds_completed"], summary["failures"]) == (2, 0)
    assert sorted(summary["shard_sizes"]) == [32, 48], "what the devices say they train on"
    assert [(row["cohort"], row["answered"]) for row in rows_of(out)] == [([0, 1], 2)] * 2
    model = fedprune.load(out)
    assert sum(int((p != 0).sum()) for p in model.parameters() if p.ndim > 1) <= 2589 + 640
    told = done.stdout + flower.log("superlink.log") + (out / "config.toml").read_text()
    for partition, other in ((0, 1), (1, 0)):
        seen = flower.log(f"device-{partition}.log")
        assert "train.tune" in seen
        assert "train.score" in seen
        assert str(folders[other]) not in seen
        assert str(folders[partition]) not in told, (
            "where a device keeps its data is its own affair"
        )


def test_three_devices_add_up_what_nobody_sees(flower: Flower, folders: list[Path]):
    """Their secrets wait in Flower's state from one stage to the next; nothing else tells them."""
    address = flower.superlink()
    for partition in (0, 1, 2):
        flower.supernode(address, partition, folders[partition])
    secret = {"secure": "secagg", "noise_source": "secret"}
    config = keys(clients=3, min_clients=3, rounds=1, sparsity=0.0, out="runs/sum", **secret)
    done = flower.flwr("run", str(ROOT), "--stream", "--run-config", config)
    out = flower.folder / "runs" / "sum"
    assert f"results     {out}" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rounds_completed"], summary["failures"]) == (1, 0)
    assert summary["shard_sizes"] == []
    assert [row["answered"] for row in rows_of(out)] == [3]
    for partition in (0, 1, 2):
        assert "query.unmask" in flower.log(f"device-{partition}.log")


def test_a_device_that_is_killed_between_rounds_and_one_without_data(
    flower: Flower, folders: list[Path]
):
    address = flower.superlink()
    nodes = [flower.supernode(address, p, folders[p]) for p in (0, 1)]
    flower.supernode(address, 2, folders[3])
    config = keys(clients=3, rounds=3, sparsity=0.0, out="runs/churn")
    out = flower.folder / "runs" / "churn"
    run = flower.start("run.log", "flwr", "run", str(ROOT), "--stream", "--run-config", config)
    wait_until(lambda: len(rows_of(out)) == 1, 200, "the first round")
    flower.kill(nodes[1])
    run.wait(300)
    rows = rows_of(out)
    assert [row["answered"] for row in rows] == [2, 1, 1]
    (first,) = rows[0]["failures"]
    assert (first["partition"], first["phase"]) == (2, "hello")
    assert f"data={folders[3]}: no *.npz there" in first["reason"]
    assert {(f["partition"], f["phase"]) for f in rows[1]["failures"]} >= {(1, "tune")}
    assert rows[2]["cohort"] == [0]
    assert json.loads((out / "summary.json").read_text())["rounds_completed"] == 3
    assert "client 1 failed while tuning" in flower.log("run.log")


def test_fewer_devices_than_the_minimum_is_a_failed_run(flower: Flower, folders: list[Path]):
    address = flower.superlink()
    flower.supernode(address, 0, folders[3])
    config = keys(clients=1, timeout=20, out="runs/void")
    done = flower.flwr("run", str(ROOT), "--stream", "--run-config", config)
    assert "fedprune: no round was completed: too few clients answered" in done.stdout
    listed = json.loads(flower.flwr("ls", "--format", "json").stdout)
    assert [run["status"] for run in listed["runs"]] == ["finished:failed"]
