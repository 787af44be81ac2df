"""Flower's own programs, as a user starts them: `flwr run` in simulation, and docs/devices.md.

Simulations have the SuperLink that Flower starts by itself. Devices have one over TLS, and keys
that are registered: one network, three runs, every message answered by a new process (a fork, see
`forking`). The first is refused (one that too few answer: `test_server_app`). The second has a
device without data, loses the SuperLink, is resumed, and loses a device. In the third another takes
the place of that one, with a key of its own.
"""

import json
import re
import shutil
import tomllib
from argparse import Namespace
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from flower import ROOT, Flower, answers, wait_until

import fedprune
from fedprune import federate
from fedprune.client.host import build_host
from fedprune.commands.new import run as new
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.starter import client_app, server_app
from fedprune.starter.task import TASK
from fedprune.tasks.images import DIGITS

pytestmark = pytest.mark.slow

SIMULATED: dict[str, Any] = {
    **{"task": "digits", "clients": 6, "model": "mlp", "cohort": 3, "rounds": 2, "warmup": 1},
    **{"local-steps": 2, "sparsity": 0.6, "score": "magnitude", "agreement": False},
}


def simulation(flower: Flower, config: str, app: Path = ROOT) -> str:
    """What `flwr run` prints; of two nodes, on one worker: each imports all of it."""
    flower.fork_apps()
    federation = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=1"
    given = ("--federation-config", federation, "--run-config", config)
    done = flower.flwr("run", str(app), "--stream", *given)
    return done.stdout + done.stderr


def test_keys_and_toml_give_the_bits_of_the_command_line_and_unknown_ones_no_run(flower):
    keys = list(SIMULATED)
    flat = " ".join(f"{key}={json.dumps(SIMULATED[key])}" for key in keys[::2])
    # Flower splits at double quotes: inside, TOML's single ones.
    text = "\\n".join(f"{k} = {json.dumps(SIMULATED[k])}".replace('"', "'") for k in keys[1::2])
    printed = simulation(flower, f'{flat} toml="{text}" out="both"')
    out = flower.folder / "both"
    assert f"results     {out}" in printed, "relative to where the SuperLink was started"
    assert "pruned      2  prune" in printed
    right = federate(configure(SIMULATED)).summary["weights_digest"]
    assert json.loads((out / "summary.json").read_text())["weights_digest"] == right
    assert (out / "report.html").is_file()
    assert "Invalid run configuration" in simulation(flower, 'taks="digits"'), "Flower refuses it"
    listed = json.loads(flower.flwr("ls", "--format", "json").stdout)
    assert [run["status"] for run in listed["runs"]] == ["finished:completed"]


def test_the_app_that_is_written_for_users_gives_the_bits_of_one_process(flower, tmp_path):
    small = {"clients": 4, "rounds": 2, "warmup": 1, "local-steps": 2}
    options = server_app.OPTIONS | {key.replace("-", "_"): value for key, value in small.items()}
    alone = federate(TASK, train=client_app.train, **options)
    app = tmp_path / "my-app"
    new(Namespace(folder=str(app)))
    printed = simulation(flower, " ".join(f"{k}={v}" for k, v in small.items()), app=app)
    folder = re.search(r"results +(\S+)", printed)
    assert folder, printed
    summary = json.loads(Path(folder[1], "summary.json").read_text())
    assert summary["weights_digest"] == alone.summary["weights_digest"]
    keys = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    said = re.findall(r"([a-z0-9-]+)=", summary["command"].partition("--run-config")[2])
    assert {*said} <= keys.keys(), "Flower refuses others: it would not repeat"


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
    assert flower.devices("certificates", str(made), *given)[0] == 0
    return made


@pytest.fixture(scope="module")
def link(flower: Flower, trust: Path) -> tuple[str, Popen[bytes]]:
    at, process = flower.superlink(trust)
    for key in "012":
        register(flower, trust / f"{key}.pub", trust, at)
    return at, process


@pytest.fixture(scope="module")
def address(link: tuple[str, Popen[bytes]]) -> str:
    return link[0]


def register(flower: Flower, key: Path, trust: Path, address: str) -> None:
    code, said = flower.devices("register", str(key), str(trust), "--superlink", address)
    assert code == 0, said


def with_keys_of_its_own(flower: Flower, trust: Path, name: str, key: str) -> Path:
    """A folder of another device: a new key, and the authority's certificate."""
    made = flower.folder / name
    assert flower.devices("certificates", str(made), "--keys", key)[0] == 0
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
    assert flower.devices("certificates", str(tmp_path), "--names", "127.0.0.1")[0] == 0
    assert answers(f"https://{address}/health", trust)
    assert not answers(f"https://{address}/health", tmp_path), "another authority"
    assert not answers(f"http://{address}/health"), "no TLS"
    stranger = with_keys_of_its_own(flower, trust, "stranger", "0")
    node = flower.supernode(address, 0, folders[0], stranger)
    assert node.wait(60) != 0
    assert "Failed to activate SuperNode" in flower.log("device-0.log")


def test_a_bad_value_is_a_line_and_a_failed_run(flower, address, trust):
    config = keys(sparsity=1.5, out="runs/bad")
    words = ("run", str(trust), config, "--superlink", address, "--app", str(ROOT))
    code, said = flower.devices(*words)
    assert "fedprune: sparsity=1.5: " in said
    assert not (flower.folder / "runs" / "bad").exists()
    assert (code, said.splitlines()[-1].split(": ")[1]) == (1, "finished:failed")


def simulated(folders: list[Path], rounds: int) -> str:
    """What a run of one process has made of the first two devices' data, after so many rounds."""
    assert DIGITS.local is not None
    config = configure({**RUN, **PRUNED, "engine": "inline"})
    own = {p: DIGITS.local(folders[p], config) for p in (0, 1)}
    rows = federate(config, inline_port(build_host(config, own))).rows
    return str(rows[rounds - 1]["weights_digest"])


PRUNED = {"rounds": 3, "warmup": 0, "end": 1, "measure_every": 3, "min_clients": 1}
PRUNED |= {"robust": "geometric-median"}


def test_devices_prune_a_model_although_one_has_no_data_the_superlink_and_another_are_killed(
    flower, link, empty, two, folders, trust
):
    del empty
    address, superlink = link
    out, start = flower.folder / "runs" / "churn", ("flwr", "run", str(ROOT), "devices")
    config = ("--stream", "--run-config", keys(**PRUNED, out="runs/churn"))
    flower.start("before.log", *start, *config)
    wait_until(lambda: len(rows_of(out)) == 1, 900, "the first round, which prunes")
    flower.kill(superlink)
    assert flower.devices("status", str(out))[0] == 1
    flower.superlink(shutil.copytree(trust, flower.folder / "backup"), address)
    given = ("--stream", "--run-config", f'resume="{out}"')
    run = flower.start("run.log", *start, *given)
    wait_until(lambda: run.poll() is not None or len(rows_of(out)) == 2, 900, "the second round")
    assert run.poll() is None, flower.log("run.log")
    flower.kill(two[1])
    run.wait(900)
    rows = rows_of(out)
    assert [row["answered"] for row in rows] == [2, 2, 1]
    assert rows[1]["weights_digest"] == simulated(folders, 2), "as if nothing had been stopped"
    (first,) = rows[0]["failures"]
    assert (first["partition"], first["phase"]) == (2, "hello")
    assert f"data={folders[EMPTY]}: no *.npz there" in first["reason"]
    assert {(f["partition"], f["phase"]) for f in rows[2]["failures"]} >= {(1, "tune")}
    told = flower.log("run.log")
    assert f"results     {out}" in told
    assert "client 1 failed while tuning" in told
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds_completed"] == 3
    assert summary["sparsity"] == int(0.8 * 12944 + 0.5) / 12944
    assert set(summary["shard_sizes"]) <= {32, 48}, "what the devices say they train on"
    (bundle,) = flower.home.glob("apps/fedprune.*")  # of all runs, here and at the devices
    ours = [path.relative_to(ROOT) for path in (ROOT / "fedprune").rglob("*.py")]
    assert all((bundle / path).read_bytes() == (ROOT / path).read_bytes() for path in ours)
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

    The site has a new key: a key whose node was killed may not return for a while.
    """
    flower.kill(empty)
    for partition in (1, 2):
        shutil.copytree(folders[partition], tmp_path / str(partition))
    site = with_keys_of_its_own(flower, trust, "site", "1")
    register(flower, site / "1.pub", trust, address)
    flower.supernode(address, "1,2", tmp_path, site)
    hidden = {"secure": "secagg", "noise_source": "secret", "dp": "client", "dp_noise": 0.1}
    hidden |= {"model": "mlp", "measure_every": 2}
    config = keys(min_clients=3, rounds=2, sparsity=0.0, out="runs/sum", **hidden)
    given = ("run", str(ROOT), "devices", "--stream", "--run-config", config)
    flower.start("sum.log", "flwr", *given)
    out = flower.folder / "runs" / "sum"
    wait_until(lambda: rows_of(out), 900, "the first round, in which nothing is measured")
    (row,) = rows_of(out)
    assert (row["answered"], row["failures"]) == (3, [])
    for device in ("0", "1,2"):
        assert "query.unmask" in flower.log(f"device-{device}.log")
