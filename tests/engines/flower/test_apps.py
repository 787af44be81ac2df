"""The two apps that a Flower user edits, with a training and a method of the user's own, and those
that `fedprune new` writes, in this process and on nodes; `flwr run`: test_programs.
"""

import json

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

import clients.app
import server.app
from fedprune import ConfigError, federate
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.flower.client_app import client_app
from fedprune.engines.flower.strategy import FedPrune
from fedprune.engines.inline import inline_port
from fedprune.learning.local_training import Tuned, tune
from fedprune.starter import client_app as starter_client
from fedprune.starter import server_app as starter_server
from fedprune.starter.task import TASK, local
from fedprune.tasks.catalog import TASKS, known_as_own
from tests.runs import played, same, tiny
from tests.server import grids

FLAT = {"task": "digits", "model": "mlp", "clients": 3, "rounds": 2, "local-steps": 1}


def halved(model, masks, steps, task, lr, tuning, **more):
    """A training of one's own whose outcome is known: that of half the learning rate."""
    return tune(model, masks, steps, task, lr / 2, tuning, **more)


def idle(_model, _masks, steps, task, *_rest, **_more):
    """A training that looks at the data and learns nothing."""
    return Tuned(1.0, sum(task.labels(batch) for step in steps for batch in step))


@pytest.mark.slow
@pytest.mark.parametrize(("app", "lr"), [(clients.app.app, 0.1), (client_app(halved), 0.05)])
def test_a_training_of_ones_own_is_what_clients_do(app, lr, workers, monkeypatch):
    """On nodes of Flower; that of the repository's app, as it lies there, is the usual one."""
    monkeypatch.setattr(grids, "app", app)
    result = FedPrune(tiny(lr=0.1)).start(workers(2))
    assert same(result.arrays.to_torch_state_dict(), played(tiny(lr=lr)).state.weights)


def test_who_learns_nothing_changes_nothing():
    """In this process too, and what is pruned is pruned all the same."""
    config = tiny(rounds=3, warmup=1, end=2)
    host = build_host(config, train=idle)
    begun = {n: t.clone() for n, t in host.model.state_dict().items()}
    state = federate(config, inline_port(host)).state
    for name, weight in state.weights.items():
        kept = state.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(weight, begun[name] * kept)


@pytest.mark.parametrize(
    ("train", "privacy", "words"),
    [
        (idle, {"dp": "example", "dp_noise": 1.0, "score": "magnitude"}, "0 of 1 steps took"),
        (lambda *_, **__: None, {}, "train gives a NoneType; allowed: Tuned"),
    ],
)
def test_a_training_that_breaks_a_promise_is_refused_before_round_one(train, privacy, words):
    with pytest.raises(ConfigError, match=words):
        build_host(tiny(model="mlp", **privacy), train=train)


MINE = """
from fedprune.scores.catalog import SCORES as OURS
from dataclasses import replace

SCORES = {"mine": replace(OURS["magnitude"], summary="a score of one's own")}
"""


def test_keys_of_the_server_app_hold_where_the_run_config_says_nothing(
    workers, tmp_path, monkeypatch
):
    """Such as a plug-in with a table of one's own; a key of the run config wins."""
    (tmp_path / "mine.py").write_text(MINE)
    keys = {"plugin": str(tmp_path / "mine.py"), "score": "mine", "sparsity": 0.6, "lr": 0.3}
    monkeypatch.setattr(server.app, "KEYS", keys)
    given = {**FLAT, "sparsity": 0.25, "out": str(tmp_path / "run")}
    server.app.app(grid=workers(2), context=Context(1, 1, {}, RecordDict(), given))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 'score="mine"' in summary["command"]
    assert summary["sparsity"] == pytest.approx(0.25, abs=1e-3)
    assert "lr=0.3" in summary["command"]


SMALL = {"clients": 4, "rounds": 3, "warmup": 1, "local_steps": 2}


@pytest.mark.slow
def test_both_apps_give_the_bits_of_one_process(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "app", starter_client.app)
    given = {key.replace("_", "-"): value for key, value in SMALL.items()}
    given["out"] = str(tmp_path / "run")
    starter_server.app(grid=workers(2), context=Context(1, 1, {}, RecordDict(), given))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    done = federate(TASK, train=starter_client.train, **{**starter_server.OPTIONS, **SMALL})
    assert TASKS.get("own") is None
    assert summary["weights_digest"] == done.summary["weights_digest"]
    assert summary["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_its_training_is_that_of_the_library_where_both_do_the_same():
    options = {**starter_server.OPTIONS, **SMALL, "clip": 0}
    ours, own = (federate(TASK, train=train, **options) for train in (None, starter_client.train))
    for name, weight in ours.state.weights.items():
        torch.testing.assert_close(own.state.weights[name], weight)


def test_what_its_training_does_not_do_is_refused_before_round_one():
    with pytest.raises(ConfigError, match="an option asks for correction"):
        federate(TASK, train=starter_client.train, **{**starter_server.OPTIONS, "scaffold": True})


@pytest.mark.parametrize("beside", [{"engine": "ray"}, {"port": True}])
def test_a_training_of_this_program_goes_to_no_others(beside):
    config = configure({"task": "digits", "clients": 3})
    if "port" in beside:
        beside = {"port": inline_port(build_host(config))}
    with pytest.raises(ConfigError, match="train: a function of this program"):
        federate(task="digits", clients=3, train=starter_client.train, **beside)


def test_a_device_reads_its_own_folder(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.full((10, 8, 8), 16), labels=np.arange(10))
    with known_as_own(TASK):
        shard = local(tmp_path, configure({"task": "own"}))
    sizes = [len(p["labels"]) for p in (shard.train, shard.validation, shard.test)]
    assert sizes == [6, 2, 2]
    assert shard.train["images"].shape == (6, 1, 8, 8)
    assert float(shard.train["images"].max()) == 1.0
