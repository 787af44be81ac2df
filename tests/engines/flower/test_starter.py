"""The app that `fedprune new` writes, in this process and on nodes; `flwr run`: test_flwr_run."""

import json

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from fedprune import ConfigError, federate
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.starter import client_app, server_app
from fedprune.starter.task import TASK, local
from fedprune.tasks.catalog import TASKS, known_as_own
from tests.server import grids

SMALL = {"clients": 4, "rounds": 3, "warmup": 1, "local_steps": 2}


@pytest.fixture(scope="module")
def right() -> str:
    done = federate(TASK, train=client_app.train, **{**server_app.OPTIONS, **SMALL})
    assert TASKS.get("own") is None
    return str(done.summary["weights_digest"])


@pytest.mark.slow
def test_both_apps_give_the_bits_of_one_process(right, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "app", client_app.app)
    given = {key.replace("_", "-"): value for key, value in SMALL.items()}
    given["out"] = str(tmp_path / "run")
    server_app.app(grid=workers(2), context=Context(1, 1, {}, RecordDict(), given))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["weights_digest"] == right
    assert summary["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_its_training_is_that_of_the_library_where_both_do_the_same():
    options = {**server_app.OPTIONS, **SMALL, "clip": 0}
    ours, own = (federate(TASK, train=train, **options) for train in (None, client_app.train))
    for name, weight in ours.state.weights.items():
        torch.testing.assert_close(own.state.weights[name], weight)


def test_what_its_training_does_not_do_is_refused_before_round_one():
    with pytest.raises(ConfigError, match="an option asks for correction"):
        federate(TASK, train=client_app.train, **{**server_app.OPTIONS, "scaffold": True})


@pytest.mark.parametrize("beside", [{"engine": "ray"}, {"port": True}])
def test_a_training_of_this_program_goes_to_no_others(beside):
    config = configure({"task": "digits", "clients": 3})
    if "port" in beside:
        beside = {"port": inline_port(build_host(config))}
    with pytest.raises(ConfigError, match="train: a function of this program"):
        federate(task="digits", clients=3, train=client_app.train, **beside)


def test_a_device_reads_its_own_folder(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.full((10, 8, 8), 16), labels=np.arange(10))
    with known_as_own(TASK):
        shard = local(tmp_path, configure({"task": "own"}))
    sizes = [len(p["labels"]) for p in (shard.train, shard.validation, shard.test)]
    assert sizes == [6, 2, 2]
    assert shard.train["images"].shape == (6, 1, 8, 8)
    assert float(shard.train["images"].max()) == 1.0
