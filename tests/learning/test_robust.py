"""Rules for changes: beside numpy and scipy, beside their papers' laws, and beside attackers."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from fedprune import federate
from fedprune.client import partition_answers
from fedprune.client.answers import answer
from fedprune.client.context import ClientContext
from fedprune.engines.inline import inline_port
from fedprune.learning.averaging import averaged
from fedprune.learning.robust import robust_change
from fedprune.learning.robust_rules import ROBUST
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.port import Port
from fedprune.protocol.replies import folded_of, sum_packet
from fedprune.structure.layout import Layout, layout_of
from fedprune.tensors.models import state_of
from fedprune.tensors.named import Tensors, copied, digest, gathered
from tests.runs import house_of, tiny

RULES = [name for name in ROBUST if name != "none"]
F = {name: 2 for name in RULES if ROBUST[name].needs}


def one_of(rule: str, changes: Tensor, byzantine: int | None = None) -> np.ndarray:
    size = changes.shape[1]
    sent, masks = {"w": torch.zeros(size)}, {"w": torch.ones(size, dtype=torch.bool)}
    f = F.get(rule, 0) if byzantine is None else byzantine
    layout = Layout({"w": torch.Size([size])}, ("w",), (), {})
    return robust_change(rule, changes, f, sent, masks, layout).numpy()


def drawn(clients: int, size: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(clients, size, generator=torch.Generator().manual_seed(seed)) + 1.0


def by_scipy(rows: np.ndarray) -> np.ndarray:
    def distances(z: np.ndarray) -> float:
        return float(np.linalg.norm(rows - z, axis=1).sum())

    start = np.median(rows, axis=0)
    how = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20_000, "maxfev": 20_000}
    return np.asarray(minimize(distances, start, method="Nelder-Mead", options=how).x)


def krum_by_hand(rows: np.ndarray, f: int) -> np.ndarray:
    n = len(rows)
    near = [sorted(((row - rows) ** 2).sum(1))[1:] for row in rows]
    best = np.argsort([sum(d[: n - f - 2]) for d in near], kind="stable")[: n - f]
    return np.asarray(rows[best].mean(axis=0))


def clipped_by_hand(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1)
    return np.asarray((rows * np.minimum(1.0, np.median(norms) / norms)[:, None]).mean(axis=0))


def nearest_by_hand(rows: np.ndarray, f: int) -> np.ndarray:
    """NNM, algorithm 2: in place of each row the mean of the n - f nearest, itself among them."""
    n = len(rows)
    near = [sorted(range(n), key=lambda j: float(np.linalg.norm(row - rows[j]))) for row in rows]
    return np.stack([rows[js[: n - f]].mean(axis=0) for js in near])


def trimmed_by_hand(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.sort(rows, axis=0)[2:-2].mean(axis=0))


BY_HAND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "median": lambda rows: np.median(rows, axis=0),
    "trimmed-mean": trimmed_by_hand,
    "clipped-mean": clipped_by_hand,
    "geometric-median": by_scipy,
    "multi-krum": lambda rows: krum_by_hand(rows, 2),
    "nearest-trimmed-mean": lambda rows: trimmed_by_hand(nearest_by_hand(rows, 2)),
    "nearest-geometric-median": lambda rows: by_scipy(nearest_by_hand(rows, 2)),
}


@pytest.mark.parametrize("clients", [7, 8, 12])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_what_its_paper_says(rule, clients):
    changes = drawn(clients, size=3, seed=clients)
    near = 2e-5 if "geometric" in rule else 1e-9
    wanted = BY_HAND[rule](changes.double().numpy())
    np.testing.assert_allclose(one_of(rule, changes), wanted, atol=near)


@pytest.mark.parametrize("size", [1e1, 1e6, 1e30])
@pytest.mark.parametrize("rule", RULES)
def test_a_minority_of_any_size_stays_bounded(rule, size):
    """Three of ten, apart or together, in any direction: never farther than the honest ones are."""
    honest = drawn(7)
    reach = 4.0 * float((honest - honest.mean(0)).norm(dim=1).max())
    for seed in range(4):
        away = size * drawn(3, seed=100 + seed) * (-1) ** seed
        away = away if seed < 2 else away[:1].repeat(3, 1)
        f = 3 if rule in F else 0
        found = torch.from_numpy(one_of(rule, torch.cat([honest, away]), f))
        if rule == "clipped-mean":  # held in norm, not in direction
            assert found.norm() <= honest.double().norm(dim=1).max()
        else:
            assert (found - honest.double().mean(0)).norm() < reach


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_values_and_long_changes_do_not_matter(rule):
    """The values are gone through in pieces; permuted, the same comes out permuted."""
    changes = drawn(8, size=70_001)
    order = torch.randperm(70_001, generator=torch.Generator().manual_seed(1))
    there = one_of(rule, changes)
    np.testing.assert_allclose(one_of(rule, changes[:, order]), there[order.numpy()], atol=1e-9)


MODEL = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def after(rule: str, singles: list[dict[str, float]]) -> tuple[Tensors, Tensors]:
    """A model with a norm before and after changes that are 0 but for some constants."""
    layout, sent = layout_of(MODEL), copied(state_of(MODEL))
    each = [{n: torch.full_like(t, one.get(n, 0.0)) for n, t in sent.items()} for one in singles]
    changes = torch.stack([gathered(one, {}) for one in each])
    total = robust_change(rule, changes, F.get(rule, 0), sent, {}, layout)
    return sent, averaged(sent, total, 1.0, {}, layout, 1.0)


@pytest.mark.parametrize("rule", RULES)
def test_variances_stay_variances(rule):
    """Means that are far apart: the middle of moments beside the middle of means is below 0."""
    shifts = np.array([-9.0, -8.0, 0.1, 8.0, 9.0, 0.0, 1.0])
    spreads = np.array([0.5, 0.6, 0.4, 0.5, 0.7, 0.3, 1.0])
    moments = np.stack([shifts, spreads + shifts**2], axis=1)
    sent, found = after(
        rule, [{"1.running_mean": m, "1.running_var": v - 1.0} for m, v in moments.tolist()]
    )
    if ROBUST[rule].middle is not None:
        moments = nearest_by_hand(moments, 2) if ROBUST[rule].mixes else moments
        own = moments[:, 1] - moments[:, 0] ** 2  # a mixture's too
        middle = BY_HAND[rule.removeprefix("nearest-")](own[:, None])
        np.testing.assert_allclose(found["1.running_var"], middle.repeat(4), rtol=1e-4)
    assert (found["1.running_var"] >= 0.3).all()
    assert torch.equal(found["0.weight"], sent["0.weight"])


def test_statistics_do_not_hide_weights():
    """A client whose weights are far off goes, however far apart honest statistics are."""
    weights = [50.0 if client == 3 else 0.01 for client in range(7)]
    singles = [{"1.running_var": 1e3 * i, "0.weight": w} for i, w in enumerate(weights)]
    sent, found = after("multi-krum", singles)
    torch.testing.assert_close(found["0.weight"], sent["0.weight"] + 0.01)


@pytest.fixture
def astray(monkeypatch) -> None:
    """Client 2 answers every question to tune with its change times -1e6."""

    def lied(question: Question, client: ClientContext) -> Answer:
        given = answer(question, client)
        bent = question.kind == "tune" and client.partition == 2
        return replace(given, values=given.values * -1e6) if bent else given

    monkeypatch.setattr(partition_answers, "answer", lied)


SHORT = {"clients": 5, "cohort": 5, "rounds": 2, "warmup": 0, "end": 1, "local_steps": 1}


@pytest.mark.sampled(1)
@pytest.mark.usefixtures("astray")
@pytest.mark.parametrize("rule", RULES)
def test_a_run_with_one_that_lies_ends_well_whoever_adds_up(rule):
    """The same bits from one host and three; removed weights are 0; letters carry it all."""
    f = {"byzantine": 1} if rule in F else {}
    ends = []
    for number in (1, 3):
        config = tiny(**SHORT, **f, hosts=number, robust=rule, score="magnitude")
        port = inline_port(house_of(config))

        def ask(question: Question, partitions: Sequence[int], port: Port = port) -> Aggregate:
            aggregate = port.ask(question, partitions)
            there = folded_of(sum_packet(aggregate), list(partitions)).singles
            if question.kind == "tune":
                assert torch.equal(there, aggregate.singles)
            return aggregate

        ends.append(federate(config, replace(port, ask=ask)).state)
    assert digest(ends[0].weights) == digest(ends[1].weights)
    weights, masks = ends[0].weights, ends[0].masks
    assert all(bool((weights[n][~m] == 0.0).all()) for n, m in masks.items())
    assert max(float(t.abs().max()) for t in weights.values()) < 3.0


@pytest.mark.usefixtures("astray")
def test_a_mean_is_what_one_wants_it_to_be():
    weights = federate(tiny(**SHORT, score="magnitude")).state.weights
    assert max(float(t.abs().max()) for t in weights.values()) > 100.0
