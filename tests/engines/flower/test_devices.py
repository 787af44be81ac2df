"""The tutorial of docs/devices.md: a SuperLink and SuperNodes over TLS, with registered keys.

Every message is answered by a new process, so a run takes minutes: one network, three runs. The
first starts with one device that has no data, the second loses one on the way, whose place another
takes with a key of its own.
"""

import json
import shutil
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from flower import ROOT, Flower, answers, wait_until

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
def trust(flower: Flower) -> Path:
    """An authority, the server's certificate, and keys of three devices."""
    made = flower.folder / "trust"
    given = ("--names", "localhost,127.0.0.1", "--keys", "0,1,2")
    assert flower.devices("certificates", str(made), *given).returncode == 0
    return made


@pytest.fixture(scope="module")
def address(flower: Flower, trust: Path) -> str:
    at = flower.superlink(trust)
    for key in "012":
        register(flower, trust / f"{key}.pub", trust, at)
    return at


def register(flower: Flower, key: Path, trust: Path, address: str) -> None:
    done = flower.devices("register", str(key), str(trust), "--superlink", address)
    assert done.returncode == 0, done.stdout + done.stderr


def with_keys_of_its_own(flower: Flower, trust: Path, name: str, key: str) -> Path:
    """A folder of another device: a new key, and the authority's certificate."""
    made = flower.folder / name
    assert flower.devices("certificates", str(made), "--keys", key).returncode == 0
    shutil.copy(trust / "ca.crt", made)
    return made


@pytest.fixture(scope="module")
def empty(flower: Flower, address: str, folders: list[Path], trust: Path) -> Popen[bytes]:
    """A device without data, partition 2."""
    return flower.supernode(address, 2, folders[EMPTY], trust)


@pytest.fixture(scope="module")
def two(flower: Flower, address: str, folders: list[Path], trust: Path) -> list[Popen[bytes]]:
    return [flower.supernode(address, p, folders[p], trust) for p in (0, 1)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_nobody_connects_without_the_authority_and_no_device_without_a_registered_key(
    flower, address, folders, trust, tmp_path
):
    assert flower.devices("certificates", str(tmp_path), "--names", "127.0.0.1").returncode == 0
    assert answers(f"https://{address}/health", trust)
    assert not answers(f"https://{address}/health", tmp_path), "another authority"
    assert not answers(f"http://{address}/health"), "no TLS"
    stranger = with_keys_of_its_own(flower, trust, "stranger", "0")
    node = flower.supernode(address, 0, folders[0], stranger)
    assert node.wait(60) != 0
    assert "Failed to activate SuperNode" in flower.log("device-0.log")


def test_fewer_devices_than_the_minimum_is_a_failed_run(flower, address, empty, trust):
    del empty
    config = keys(rounds=2, timeout=10, out="runs/void")
    words = ("run", str(trust), config, "--superlink", address, "--app", str(ROOT))
    done = flower.devices(*words)
    assert "fedprune: no round was completed: too few clients answered" in done.stdout
    assert (done.returncode, done.stdout.splitlines()[-1].split(": ")[1]) == (1, "finished:failed")


def test_devices_prune_a_model_together_although_one_is_killed_and_one_has_no_data(
    flower, empty, two, folders
):
    del empty
    pruned = {"rounds": 2, "warmup": 0, "end": 1, "measure_every": 2}
    config = keys(**pruned, min_clients=1, out="runs/churn", robust="geometric-median")
    out, given = flower.folder / "runs" / "churn", ("--run-config", config)
    run = flower.start("run.log", "flwr", "run", str(ROOT), "devices", "--stream", *given)
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
    flower, address, empty, folders, trust, tmp_path
):
    """Their secrets wait in Flower's state from one stage to the next; nothing else tells them.

    The site has a new key: a key whose node was killed may not return within a minute.
    """
    flower.kill(empty)
    for partition in (1, 2):
        shutil.copytree(folders[partition], tmp_path / str(partition))
    site = with_keys_of_its_own(flower, trust, "site", "1")
    register(flower, site / "1.pub", trust, address)
    flower.supernode(address, "1,2", tmp_path, site)
    secret = {"secure": "secagg", "noise_source": "secret"}
    config = keys(min_clients=3, rounds=1, sparsity=0.0, out="runs/sum", **secret)
    done = flower.flwr("run", str(ROOT), "devices", "--stream", "--run-config", config)
    out = flower.folder / "runs" / "sum"
    assert f"results     {out}" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rounds_completed"], summary["failures"]) == (1, 0)
    assert summary["shard_sizes"] == []
    assert [row["answered"] for row in rows_of(out)] == [3]
    for device in ("0", "1,2"):
        assert "query.unmask" in flower.log(f"device-{device}.log")
