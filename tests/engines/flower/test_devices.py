"""Devices: a SuperLink and SuperNodes as processes of their own, each with its own data.

Every message is answered by a new process, so a run takes minutes: one network, three runs. The
first starts with one device that has no data, the second loses one on the way.
"""

import json
import shutil
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from flower import ROOT, Flower, wait_until

import fedprune

pytestmark = pytest.mark.slow

RUN = {"task": "digits", "clients": 3, "warmup": 1, "local-steps": 3, "timeout": 120}
EMPTY = 3
"""The place of the folder without data among the devices' folders."""


def keys(**changes: Any) -> str:
    """The run config as one types it."""
    given = {**RUN, **{key.replace("_", "-"): value for key, value in changes.items()}}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in given.items())


@pytest.fixture(scope="module")
def address(flower: Flower) -> str:
    return flower.superlink()


@pytest.fixture(scope="module")
def empty(flower: Flower, address: str, folders: list[Path]) -> Popen[bytes]:
    """A device without data, partition 2."""
    return flower.supernode(address, 2, folders[EMPTY])


@pytest.fixture(scope="module")
def two(flower: Flower, address: str, folders: list[Path]) -> list[Popen[bytes]]:
    return [flower.supernode(address, p, folders[p]) for p in (0, 1)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_fewer_devices_than_the_minimum_is_a_failed_run(flower, empty):
    del empty
    config = keys(rounds=2, timeout=10, out="runs/void")
    done = flower.flwr("run", str(ROOT), "--stream", "--run-config", config)
    assert "fedprune: no round was completed: too few clients answered" in done.stdout
    listed = json.loads(flower.flwr("ls", "--format", "json").stdout)
    assert [run["status"] for run in listed["runs"]] == ["finished:failed"]


def test_devices_prune_a_model_together_although_one_is_killed_and_one_has_no_data(
    flower, empty, two, folders
):
    del empty
    pruned = {"rounds": 2, "warmup": 0, "end": 1, "measure_every": 2}
    config = keys(**pruned, min_clients=1, out="runs/churn", robust="geometric-median")
    out = flower.folder / "runs" / "churn"
    run = flower.start("run.log", "flwr", "run", str(ROOT), "--stream", "--run-config", config)
    wait_until(lambda: len(rows_of(out)) == 1, 900, "the first round, which prunes")
    flower.kill(two[1])
    run.wait(900)
    rows = rows_of(out)
    assert [row["answered"] for row in rows] == [2, 1]
    (first,) = rows[0]["failures"]
    assert (first["partition"], first["phase"]) == (2, "hello")
    assert f"data={folders[EMPTY]}: no *.npz there" in first["reason"]
    assert {(f["partition"], f["phase"]) for f in rows[1]["failures"]} >= {(1, "tune")}
    told = flower.log("run.log")
    assert f"results     {out}" in told
    assert "client 1 failed while tuning" in told
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds_completed"] == 2
    assert summary["sparsity"] == int(0.8 * 12944 + 0.5) / 12944
    assert set(summary["shard_sizes"]) <= {32, 48}, "what the devices say they train on"
    model = fedprune.load(out)
    assert sum(int((p != 0).sum()) for p in model.parameters() if p.ndim > 1) <= 2589 + 640
    told += flower.log("superlink.log") + (out / "config.toml").read_text()
    for partition, other in ((0, 1), (1, 0)):
        seen = flower.log(f"device-{partition}.log")
        assert "train.tune" in seen
        assert "train.score" in seen
        assert str(folders[other]) not in seen
        assert str(folders[partition]) not in told, (
            "where a device keeps its data is its own affair"
        )


def test_a_device_and_a_site_of_two_add_up_what_nobody_sees(
    flower, address, empty, folders, tmp_path
):
    """Their secrets wait in Flower's state from one stage to the next; nothing else tells them."""
    flower.kill(empty)
    for partition in (1, 2):
        shutil.copytree(folders[partition], tmp_path / str(partition))
    flower.supernode(address, "1,2", tmp_path)
    secret = {"secure": "secagg", "noise_source": "secret"}
    config = keys(min_clients=3, rounds=1, sparsity=0.0, out="runs/sum", **secret)
    done = flower.flwr("run", str(ROOT), "--stream", "--run-config", config)
    out = flower.folder / "runs" / "sum"
    assert f"results     {out}" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rounds_completed"], summary["failures"]) == (1, 0)
    assert summary["shard_sizes"] == []
    assert [row["answered"] for row in rows_of(out)] == [3]
    for device in ("0", "1,2"):
        assert "query.unmask" in flower.log(f"device-{device}.log")
