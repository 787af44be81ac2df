"""How quality is spread over clients, and quality on clients that never train."""

from dataclasses import replace

import numpy as np
import pytest

from fedprune import federate
from fedprune.client.host import build_host
from fedprune.config.cohort import newcomers_of
from fedprune.engines.inline import inline_port
from fedprune.protocol.messages import Question
from fedprune.report.page import write_report
from fedprune.tasks.client_spread import client_percentiles, edges_of, in_bin
from tests.runs import overheard, tiny


@pytest.mark.parametrize(("metric", "low", "high"), [("accuracy", 0, 1), ("perplexity", 0.5, 6)])
@pytest.mark.parametrize("clients", [1, 9, 200])
def test_percentiles_are_numpys_to_a_bin(metric, low, high, clients):
    each = np.random.default_rng(clients).uniform(low, high, clients)
    totals: dict[str, float] = {}
    for value in each:
        own = {"loss": 7 * value, "correct": 7 * value, "count": 7.0}
        for name, n in in_bin(metric, own).items():
            totals[name] = totals.get(name, 0.0) + n
    shares = metric == "accuracy" or "correct" in metric
    found = client_percentiles(metric, totals)
    edges = np.array(edges_of(metric))
    wide = np.diff(edges)[min(np.searchsorted(edges, high), len(edges) - 1) - 1]
    for q in (10, 50, 90):
        between = np.percentile(each, [max(0, q - 100 / clients), min(100, q + 100 / clients)])
        assert between[0] - wide <= found[f"p{q}"] <= between[1] + wide
    worst = np.sort(each) if shares else np.sort(each)[::-1]
    assert found["worst_tenth"] == pytest.approx(
        worst[: max(1, clients // 10)].mean(), abs=2 * wide
    )
    assert found["clients"] == clients


def test_a_histogram_has_every_client_once_and_of_none_says_nothing():
    assert sum(in_bin("accuracy", {"loss": 1.0, "correct": 3.0, "count": 3.0}).values()) == 1
    assert sum(in_bin("mse", {"loss": 1e9, "correct": 0.0, "count": 1.0}).values()) == 1
    assert sum(in_bin("mse", {"loss": 1.0, "correct": 0.0, "count": 0.0}).values()) == 0
    assert client_percentiles("accuracy", {}) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"secure": "secagg"},
        {"dp": "client", "dp_noise": 1.0, "metrics": "exact", "allow_uncovered": True},
    ],
)
def test_a_run_says_how_its_clients_do_by_their_own_figures(more):
    config = tiny(clients=8, cohort=6, client_percentiles=True, model="mlp", **more)
    result = federate(config)
    port = inline_port(build_host(tiny(clients=8, cohort=6, model="mlp")))
    question = Question("evaluate", 9, result.state.weights, result.state.masks, part="test")
    each = [port.ask(replace(question), [p]).totals for p in range(8)]
    shares = [t["correct"] / t["count"] for t in each if t["count"]]
    spread = result.summary["client_spread"]
    assert spread["of"] == "accuracy"
    assert spread["final"]["clients"] == pytest.approx(len(shares))
    low, high = np.sort(shares)[[3, 4]]
    assert low - 0.02 <= spread["final"]["p50"] <= high + 0.02


def test_clients_own_models_have_a_spread_of_their_own():
    keys = {"method": "fedpai", "score": "snip", "warmup": 0, "end": 1, "model": "mlp"}
    result, asked, _ = overheard(tiny(client_percentiles=True, **keys))
    own = [t.totals for q, ps, t in asked if (q.kind, q.part, len(ps)) == ("evaluate", "test", 1)]
    shares = np.sort([t["correct"] / t["count"] for t in own])
    found = result.summary["client_spread"]
    assert found["own"]["clients"] == found["final"]["clients"] == len(shares) == 5
    assert shares[1] - 0.02 <= found["own"]["p50"] <= shares[3] + 0.02
    assert found["own"] != found["final"]


def test_newcomers_never_train_and_are_measured_by_themselves():
    config = tiny(clients=8, cohort=4, newcomers=3, rounds=5, model="mlp")
    result, asked, _ = overheard(config)
    new = newcomers_of(config)
    assert len(new) == 3
    trained = {p for q, ps, _ in asked for p in ps if q.kind in ("tune", "score")}
    assert trained == set(range(8)) - new
    (told,) = [t for q, ps, t in asked if q.kind == "evaluate" and set(ps) == new]
    found = result.summary["quality"]["newcomers"]
    assert found["loss"] == told.totals["loss"] / told.totals["count"]
    assert found["count"] == told.totals["count"] < result.summary["quality"]["final"]["count"]


@pytest.mark.slow
def test_the_page_and_the_screen_tell_newcomers_and_spread_from_baselines(tmp_path):
    config = tiny(clients=8, cohort=4, newcomers=3, client_percentiles=True, model="mlp")
    federate(config, folder=tmp_path)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "On clients that never trained it is" in page
    assert "Baselines of the same budget" not in page
    assert "newcomers baseline" not in page
    assert "mean of the worst tenth" in page
