"""`flwr run .` in simulation, as a user types it, with a SuperLink of its own."""

import json
import re
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from flower import ROOT, Flower

from fedprune import federate
from fedprune.commands.new import run as new
from fedprune.config import configure
from fedprune.starter import client_app, server_app
from fedprune.starter.task import TASK

pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = {
    "task": "digits",
    "clients": 6,
    "cohort": 3,
    "rounds": 3,
    "warmup": 1,
    "local-steps": 2,
    "sparsity": 0.6,
    "score": "magnitude",
    "agreement": False,
}


@pytest.fixture(scope="module")
def right() -> str:
    return str(federate(configure(CONFIG)).summary["weights_digest"])


def run(flower: Flower, config: str, app: Path = ROOT) -> str:
    """What it prints; of two nodes, on one worker: each imports all of it."""
    federation = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=1"
    done = flower.flwr(
        *("run", str(app), "--stream", "--federation-config", federation, "--run-config", config)
    )
    return done.stdout + done.stderr


def statuses(flower: Flower) -> list[str]:
    listed = json.loads(flower.flwr("ls", "--format", "json").stdout)
    return [str(run["status"]) for run in listed["runs"]]


def test_keys_and_toml_give_the_bits_of_the_command_line_and_unknown_ones_no_run(flower, right):
    keys = list(CONFIG)
    flat = " ".join(f"{key}={json.dumps(CONFIG[key])}" for key in keys[::2])
    # Flower splits at double quotes: inside, TOML's single ones.
    text = "\\n".join(f"{k} = {json.dumps(CONFIG[k])}".replace('"', "'") for k in keys[1::2])
    printed = run(flower, f'{flat} toml="{text}" out="both"')
    out = flower.folder / "both"
    assert f"results     {out}" in printed, "relative to where the SuperLink was started"
    assert "pruned      3  recover" in printed
    assert json.loads((out / "summary.json").read_text())["weights_digest"] == right
    assert (out / "report.html").is_file()
    assert "Invalid run configuration" in run(flower, 'taks="digits"'), "Flower refuses it"
    assert statuses(flower) == ["finished:completed"]


def test_the_app_that_is_written_for_users_gives_the_bits_of_one_process(flower, tmp_path):
    small = {"clients": 4, "rounds": 3, "warmup": 1, "local-steps": 2}
    options = server_app.OPTIONS | {key.replace("-", "_"): value for key, value in small.items()}
    alone = federate(TASK, train=client_app.train, **options)
    app = tmp_path / "my-app"
    new(Namespace(folder=str(app)))
    printed = run(flower, " ".join(f"{k}={v}" for k, v in small.items()), app=app)
    folder = re.search(r"results +(\S+)", printed)
    assert folder, printed
    summary = json.loads(Path(folder[1], "summary.json").read_text())
    assert summary["weights_digest"] == alone.summary["weights_digest"]
    keys = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    said = re.findall(r"([a-z0-9-]+)=", summary["command"].partition("--run-config")[2])
    assert {*said} <= keys.keys(), "Flower refuses others: it would not repeat"
