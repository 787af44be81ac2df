"""The two apps that a Flower user edits: with a training and a method of the user's own."""

import json
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

import clients.app
import server.app
from fedprune import ConfigError, federate
from fedprune.client.host import build_host
from fedprune.engines.flower.client_app import client_app
from fedprune.engines.flower.strategy import FedPrune
from fedprune.engines.inline import inline_port
from fedprune.learning.local_training import Tuned, tune
from tests.runs import played, same, tiny
from tests.server import grids

FLAT = {"task": "digits", "model": "mlp", "clients": 3, "rounds": 2, "local-steps": 1}


def halved(
    model: Any, masks: Any, steps: Any, task: Any, lr: float, tuning: Any, **more: Any
) -> Tuned:
    """A training of one's own whose outcome is known: that of half the learning rate."""
    return tune(model, masks, steps, task, lr / 2, tuning, **more)


def idle(model: Any, masks: Any, steps: Any, task: Any, *rest: Any, **more: Any) -> Tuned:
    """A training that looks at the data and learns nothing."""
    del model, masks, rest, more
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
