"""Baselines are runs: each arm has the rows of a run with its options alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprune import TASKS, ConfigError, federate
from fedprune.engines.inline import inline_port
from fedprune.learning.steps import examples_trained_on, step_rows
from fedprune.protocol.messages import Question
from fedprune.records.gap import by_construction, gap_closure, gap_of
from fedprune.report.closing import BY_CONSTRUCTION, gap_words
from fedprune.server.state import Model, State
from fedprune.server.watch import Watch
from tests.runs import Killed, house_of, tiny


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "alone"),
    [
        ("random", {"score": "random"}),
        ("magnitude", {"score": "magnitude"}),
        ("lottery", {"score": "magnitude", "rewind": 2}),
    ],
)
def test_an_arm_is_the_run_that_it_stands_for(arm, alone):
    keys = {"model": "mlp", "rounds": 5, "warmup": 2, "end": 4}
    beside = federate(tiny(baselines=(arm,), **keys))
    rows = [row["weights_digest"] for row in beside.rows if row["arm"] == arm]
    run = federate(tiny(**keys, **alone))
    assert rows == [row["weights_digest"] for row in run.rows]
    assert beside.summary["quality"][arm] == run.summary["quality"]["final"]


ALONE = {"model": "mlp", "clients": 3, "rounds": 3, "warmup": 1, "end": 2, "alpha": 0.5}
BOTH = ("local-only", "centralised")


@pytest.mark.slow
def test_clients_alone_are_runs_of_one_client_and_go_on_after_a_kill(tmp_path):
    """Each is the run of a federation without the others; its model is measured on everyone."""
    config = tiny(**ALONE, baselines=BOTH)
    port = inline_port(house_of(config))

    def stopped(arm, question, _):
        if arm == "local-only" and question.round == 2 and 1 in question.known:
            raise Killed

    with pytest.raises(Killed):
        federate(config, folder=tmp_path / "run", watch=Watch(phase=stopped))
    gone_on = federate(config, folder=tmp_path / "run", resume=True)
    gap = gone_on.summary["gap_closure"]
    alone = tiny(**ALONE, cohort=1)
    losses = []
    for p in range(config.clients):
        only_it = replace(port, present=lambda p=p: {p: port.present()[p]})
        model = federate(alone, only_it).state.model
        found = port.ask(Question("evaluate", 3, model.weights, model.masks, part="test"), range(3))
        losses.append(found.totals["loss"] / found.totals["count"])
    spread = {"mean": np.mean(losses), "deviation": np.std(losses, ddof=1), "count": 3}
    assert gap["losses"]["local"] == pytest.approx(spread)
    assert gone_on.summary["quality"]["local-only"]["loss"] == pytest.approx(np.mean(losses))
    assert federate(config).summary["gap_closure"] == gap
    ledger = (tmp_path / "run" / "privacy.jsonl").read_text()
    assert '"local-only"' in ledger
    assert '"centralised"' not in ledger


@pytest.mark.parametrize("size", [1, 7, 8, 9, 30])
@pytest.mark.parametrize(
    "how", [{"local_steps": 3}, {"local_steps": 0, "local_epochs": 2}, {"accumulate": 2}]
)
def test_examples_of_a_round_are_counted_as_they_are_trained_on(size, how):
    config = tiny(**how)
    steps = step_rows(size, config, torch.Generator().manual_seed(0))
    assert examples_trained_on(size, config) == sum(len(rows) for step in steps for rows in step)


def test_of_exact_sums_without_training_the_gap_is_closed_by_construction():
    keys = {"schedule": "one-shot", "local_steps": 0, "score": "wanda", "rounds": 1, "end": 1}
    config = tiny(**keys, cohort=5, warmup=0, model="mlp", score_wire="fp32", baselines=BOTH)
    gap = federate(config).summary["gap_closure"]
    assert gap["by_construction"]
    tests = {"pruned": {"loss": 1.0, "count": 1.0}, "centralised": {"loss": 1.0, "count": 1.0}}
    failed = gap_of(config, tests, State(0, Model({}, {})), 1)["gap_closure"]
    assert not failed["by_construction"]
    losses = [gap["losses"][side]["mean"] for side in ("federated", "centralised")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert BY_CONSTRUCTION in gap_words(gap)
    changes = ({"cohort": 3}, {"combine": "mean"}, {"score_examples": 2}, {"profiles": "f.toml"})
    for change in (*changes, {"score": "magnitude"}):
        assert not by_construction(config.model_copy(update={"baselines": (), **change}))


def test_the_gap_is_withheld_where_its_denominator_may_be_nothing():
    near = gap_closure([1.0, 3.0, 2.0], [1.5], [0.9])
    assert near["value"] is None  # 1.1 against twice 1 / sqrt(3)
    assert "twice" in near["withheld"]
    far = gap_closure([1.0, 3.0, 2.0], [1.5, 1.3], [0.8, 0.6])
    assert far["standard_error"] == pytest.approx(np.hypot(1 / 3**0.5, 0.1))
    assert far["value"] == pytest.approx((2.0 - 1.4) / (2.0 - 0.7))
    assert gap_closure([1.0], [0.5], [0.2])["value"] is None
    assert gap_closure([], [0.5], [0.2])["withheld"] == "a loss is not known"


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"model": "cnn"}, {"model": "vit", "local_steps": 1}])
def test_the_small_dense_model_has_the_pruned_size(keys):
    config = tiny(**keys, rounds=2, warmup=0, end=2, sparsity=0.6, baselines=("dense-small",))
    result = federate(config)
    first, last = [row for row in result.rows if row["arm"] == "dense-small"]
    kept = result.summary["parameters"] - first["parameters"]
    removed = first["removed"]
    assert kept >= removed  # biases of what was cut go with it
    assert 0.5 < first["sparsity"] <= 0.6
    assert first["mask_digest"] == last["mask_digest"]
    assert result.summary["dense_small"]["parameters"] == last["parameters"]


def test_examples_of_unlike_shapes_are_not_pooled(monkeypatch):
    config = tiny(model="mlp", baselines=("centralised",))
    shards = list(house_of(config).shards.values())
    odd = replace(shards[1], train={n: t.double() for n, t in shards[1].train.items()})
    known = replace(TASKS["digits"], shards=lambda _: [shards[0], odd, *shards[2:]])
    monkeypatch.setitem(TASKS, "digits", known)
    with pytest.raises(ConfigError, match="differ in shape or type"):
        federate(config, inline_port(house_of(config)))
