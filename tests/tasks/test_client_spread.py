"""How quality is spread over clients, and quality on clients that never train."""

import json

import numpy as np
import pytest

from fedprune import Result, RunConfig, federate
from fedprune.client.host import build_host
from fedprune.config.cohort import newcomers_of
from fedprune.engines.inline import inline_port
from fedprune.protocol.messages import Question
from fedprune.report.closing import closing_lines
from fedprune.report.page import write_report
from fedprune.tasks.client_spread import (
    _denoised,
    client_percentiles,
    edges_of,
    in_bin,
    spread_names,
)
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


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
@pytest.mark.parametrize("absent", [0, 100])
def test_noise_moves_percentiles_by_no_more_than_the_ranks_that_it_says(metric, absent):
    """1,000 clients with known figures, and some that have nothing to be measured on."""
    random, shares = np.random.default_rng(7), metric == "accuracy"
    each = np.sort(random.beta(8, 3, 1000) if shares else random.lognormal(0.4, 0.3, 1000))
    edges, clients = np.array(edges_of(metric)), 1000 + absent
    exact, _ = np.histogram(each, edges)
    bins, off = len(exact), 0.04
    sd = off / 2 * clients / bins**0.5
    found = []
    for _ in range(200):
        noisy = dict(zip(spread_names(metric), exact + random.normal(0, sd, bins), strict=True))
        found.append(client_percentiles(metric, {**noisy, "count": float(clients)}, off))
    assert {f["clients"] for f in found} == {clients}
    assert {f["rank_off"] for f in found} == {4.0}
    for q in (10, 50, 90):
        told = np.array([f[f"p{q}"] for f in found])
        ranks = np.searchsorted(each, told) / 10
        wide = np.diff(edges)[np.searchsorted(edges, told) - 1]
        low, high = np.percentile(each, [q - 4, q + 4])
        assert np.mean((told >= low - wide) & (told <= high + wide)) > 0.95
        assert ranks.mean() == pytest.approx(q, abs=1.0)
        assert ranks.std() > 0.2  # there is noise
    # The worst figures that there are, but for the 4 % that may be noise, which are as the next.
    worst = each[:100] if shares else each[::-1][:100]
    worst[:40] = worst[40]
    told = np.array([f["worst_tenth"] for f in found])
    assert told.mean() == pytest.approx(worst.mean(), rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_sums_of_noisy_counts_come_to_rise_by_as_little_as_can_be(seed):
    """Where sums fall by d, rising ones are d / 2 off somewhere: no more is needed."""
    counts = np.random.default_rng(seed).normal(1.0, 4.0, 50)
    sums = np.clip(np.cumsum(counts), 0.0, max(0.0, counts.sum()))
    falls = max(sums[i] - sums[j] for i in range(50) for j in range(i, 50))
    found = np.array(_denoised(counts.tolist()))
    assert falls > 0
    assert found.min() >= 0
    assert np.abs(np.cumsum(found) - sums).max() == pytest.approx(falls / 2)


def test_counts_without_noise_give_the_same_percentiles_by_either_way():
    counts = np.random.default_rng(3).integers(0, 4, 50)
    totals = dict(zip(spread_names("accuracy"), map(float, counts), strict=True))
    exact = client_percentiles("accuracy", totals)
    noised = client_percentiles("accuracy", totals | {"count": float(counts.sum())}, 1e-9)
    assert noised == pytest.approx(exact | {"rank_off": 1e-7})


SHORT = {"rounds": 2, "warmup": 1, "end": 2}
NOISED = {
    "dp": (60, {"dp": "client", "dp_metric_noise": 0.02}),
    "secure": (10, {"dp": "client", "dp_metric_noise": 0.004, "secure": "secagg"}),
    "example": (60, {"dp": "example", "dp_metric_noise": 0.002}),
}


def shares_of(result: Result, config: RunConfig) -> list[float]:
    """Each client's accuracy on its own test rows."""
    port = inline_port(build_host(config))
    question = Question("evaluate", 9, result.state.weights, result.state.masks, part="test")
    each = [port.ask(question, [p]).totals for p in range(config.clients)]
    return [t["correct"] / t["count"] for t in each if t["count"]]


@pytest.mark.slow
@pytest.mark.parametrize("way", NOISED)
def test_a_run_with_noise_says_how_its_clients_do_and_how_far_ranks_are_off(way, tmp_path):
    clients, more = NOISED[way]
    keys = {"clients": clients, "model": "mlp", "alpha": 100.0}
    noise = {"dp_noise": 1.0, "dp_metric_clip": 3.0, "noise_source": "seeded"}
    config = tiny(**keys, **noise, **more, client_percentiles=True)
    result = federate(config, folder=tmp_path)
    shares = shares_of(result, tiny(**keys))
    spread = result.summary["client_spread"]["final"]
    z, power = more["dp_metric_noise"], 0.5 if way == "example" else 1.0
    assert spread["rank_off"] == pytest.approx(200 * 50**0.5 * z * 2 * 3.0 / clients**power)
    assert spread["clients"] == clients
    for q in (10, 50, 90):
        off = 1.5 * spread["rank_off"]
        low, high = np.percentile(shares, [max(0, q - off), min(100, q + off)])
        assert low - 0.02 <= spread[f"p{q}"] <= high + 0.02
    lines = [json.loads(line) for line in (tmp_path / "privacy.jsonl").read_text().splitlines()]
    told = [f for x in lines for f in x["fields"] if x["quantity"] == "metrics" and x["covered"]]
    assert {f"totals.{name}" for name in spread_names("accuracy")} <= set(told)
    write_report(tmp_path)
    said = f"{spread['rank_off']:.2g} points"
    assert f"may move a rank by {said}" in (tmp_path / "report.html").read_text()
    assert any(said in line for line in closing_lines(result.summary, tmp_path))


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
    result = federate(
        tiny(clients=8, cohort=6, client_percentiles=True, model="mlp", **SHORT, **more)
    )
    shares = shares_of(result, tiny(clients=8, cohort=6, model="mlp"))
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
    keys = {"clients": 8, "cohort": 4, "model": "mlp", **SHORT}
    config = tiny(newcomers=3, client_percentiles=True, **keys)
    federate(config, folder=tmp_path)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "On clients that never trained it is" in page
    assert "Baselines of the same budget" not in page
    assert "newcomers baseline" not in page
    assert "mean of the worst tenth" in page
