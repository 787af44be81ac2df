"""`FedPrune` where a Flower user puts a strategy."""

import logging

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import ServerApp

from fedprune import ConfigError, federate
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.flower.strategy import FedPrune, _changed
from fedprune.engines.inline import inline_port
from fedprune.protocol.models import dense_model
from fedprune.run import NoRoundCompleted
from fedprune.tensors.models import state_of
from tests.runs import played, same, tiny


def test_in_a_users_own_server_app(devices, caplog, monkeypatch):
    """The snippet in docs/devices.md."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    app, kept = ServerApp(), {}

    @app.main()
    def main(grid, _):
        changes = {"task": "digits", "clients": 2, "rounds": 4, "local-steps": 2, "sparsity": 0.9}
        result = FedPrune(configure(changes)).start(
            grid,
            num_rounds=2,
            timeout=60,
            train_config=ConfigRecord({"lr": 0.01}),
            evaluate_fn=lambda _, arrays: MetricRecord({"tensors": len(arrays)}),
        )
        kept["result"] = result

    app(grid=devices(2), context=Context(1, 1, {}, RecordDict(), {}))
    result = kept["result"]
    assert list(result.train_metrics_clientapp) == [1, 2]
    assert list(result.evaluate_metrics_clientapp) == [1, 2]
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2], "round 0 is before the first"
    weights = result.arrays.to_torch_state_dict()
    model = dense_model(configure({"task": "digits"}))
    model.load_state_dict(weights, strict=False)
    zeros = sum(int((w == 0).sum()) for n, w in weights.items() if w.ndim > 1)
    assert zeros > 0.8 * 12944
    said = [record.getMessage() for record in caplog.records]
    assert [s for s in said if s.startswith("[ROUND")] == ["[ROUND 1/2]", "[ROUND 2/2]"]
    assert sum("sparsity 0.9, loss" in s for s in said) == 2


@pytest.mark.slow
def test_the_result_is_that_of_the_same_run_in_one_process(workers):
    result = FedPrune(tiny()).start(workers(2))
    right = played(tiny())
    assert same(result.arrays.to_torch_state_dict(), right.state.weights)
    losses = [record["loss"] for record in result.evaluate_metrics_clientapp.values()]
    assert losses == [row["loss"] for row in right.rows]
    trained = [record["train_loss"] for record in result.train_metrics_clientapp.values()]
    assert trained == [row["train_loss"] for row in right.rows]
    assert result.train_metrics_clientapp[5]["sparsity"] == right.rows[4]["sparsity"]
    assert result.evaluate_metrics_serverapp == {}


@pytest.mark.slow
def test_it_begins_with_the_arrays_given(workers):
    config = tiny(rounds=1, warmup=0, end=1)
    given = {n: torch.full_like(t, 0.01) for n, t in state_of(dense_model(config)).items()}
    seen = {}
    result = FedPrune(config).start(
        workers(1),
        ArrayRecord({n: t.half() if n == "head.weight" else t for n, t in given.items()}),
        evaluate_fn=lambda r, arrays: seen.update({r: arrays.to_torch_state_dict()}),
    )
    assert same(seen[0], {**given, "head.weight": given["head.weight"].half().float()})
    begun = federate(config, inline_port(build_host(config)), weights=seen[0])
    assert same(result.arrays.to_torch_state_dict(), begun.state.weights)
    assert same(seen[1], begun.state.weights)


def test_arrays_of_another_model_are_refused(workers):
    given = {n: t.clone() for n, t in state_of(dense_model(tiny())).items()}
    bad = {**given, "head.bias": torch.zeros(3)}
    with pytest.raises(ConfigError, match=r"initial_arrays: head.bias: \(3,\); allowed: \(10,\)"):
        FedPrune(tiny()).start(workers(1), ArrayRecord(bad))
    del given["head.bias"]
    with pytest.raises(ConfigError, match=r"initial_arrays: head.bias: nothing; allowed"):
        FedPrune(tiny()).start(workers(1), ArrayRecord(given))


@pytest.mark.parametrize(
    ("rounds", "warmup", "end"), [(1, 0, 1), (2, 0, 1), (5, 1, 3), (10, 3, 7), (50, 15, 38)]
)
def test_warm_up_and_end_follow_the_rounds_unless_they_were_given(rounds, warmup, end):
    config = _changed(configure({"task": "digits", "rounds": 40}), rounds, None, {})
    assert (config.rounds, config.warmup, config.end) == (rounds, warmup, end)
    assert config == configure({"task": "digits", "rounds": rounds})
    given = _changed(configure({"task": "digits", "warmup": 0}), rounds, None, {})
    assert given == configure({"task": "digits", "rounds": rounds, "warmup": 0})


def test_changes_are_checked_and_named(workers):
    start = FedPrune(tiny()).start
    with pytest.raises(ConfigError, match=r"rate=0.1: no such key"):
        start(workers(1), train_config=ConfigRecord({"rate": 0.1}))
    with pytest.raises(ConfigError, match="timeout=-1"):
        start(workers(1), timeout=-1)
    with pytest.raises(ConfigError, match="rounds=0"):
        start(workers(1), num_rounds=0)


@pytest.mark.slow
def test_train_config_takes_the_command_lines_names(workers):
    result = FedPrune(tiny()).start(
        workers(1),
        train_config=ConfigRecord({"local-steps": 1, "lr": 0.2}),
        evaluate_config=ConfigRecord({"score-batch": 16}),
    )
    right = played(tiny(local_steps=1, lr=0.2, score_batch=16))
    losses = [record["loss"] for record in result.evaluate_metrics_clientapp.values()]
    assert losses == [row["loss"] for row in right.rows]


def test_a_timeout_ends_the_wait(devices):
    def lose(_, question, reply):
        return None if question.metadata.message_type == "train.tune" else reply

    strategy = FedPrune(tiny(clients=2, cohort=2, hosts=2, rounds=1, warmup=0, end=1))
    with pytest.raises(NoRoundCompleted, match=r"no reply within 0\.1 s"):
        strategy.start(devices(2, meddle=lose), timeout=0.1)
