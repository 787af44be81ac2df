"""FedSpine against its loop in plain torch: three unequal clients, factors, masks and a bandit."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune.adapters.factors import DOWN, UP
from fedprune.config import configure
from fedprune.methods import fedspine
from fedprune.methods.bandit import Tried, with_arm
from fedprune.options.refusal import ConfigError
from tests.perceptron import LAYERS, SMALL, count, flat, gradients, kept_by
from tests.runs import house_of, overheard

PATHS, HEAD = ("features.1", "features.3"), ("head.weight", "head.bias")
ARMS = [(1.0, 4), (1.0, 2), (0.5, 4), (0.5, 2)]
SCALE = 8.0 / 4
KEYS = {
    **{**SMALL, "warmup": 1, "end": 2, "rounds": 3, "lr_schedule": "constant", "sparsity": 0.5},
    **{"method": "fedspine", "ranks": (2, 4), "method_options": {"densities": (0.5, 1.0)}},
}


def product(factors: Mapping[str, Tensor], path: str) -> Tensor:
    return SCALE * factors[f"{path}{UP}"].double() @ factors[f"{path}{DOWN}"].double()


def descended(
    frozen: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
) -> dict[str, Tensor]:
    """Factors and the head after one step of descent."""
    merged = {n: w.double() for n, w in {**frozen, **{n: factors[n] for n in HEAD}}.items()}
    for path, name in zip(PATHS, LAYERS, strict=True):
        merged[name] = masks[name] * (merged[name] + product(factors, path))
    slopes = gradients(merged, x, y)
    out = {n: merged[n] - 0.1 * slopes[n] for n in HEAD}
    for path, name in zip(PATHS, LAYERS, strict=True):
        slope = SCALE * masks[name] * slopes[name]
        up, down = factors[f"{path}{UP}"].double(), factors[f"{path}{DOWN}"].double()
        out[f"{path}{UP}"] = up - 0.1 * slope @ down.T
        out[f"{path}{DOWN}"] = down - 0.1 * up.T @ slope
    return out


def nearest(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    return torch.from_numpy((left[:, :rank] * values[:rank]) @ right[:rank])


@pytest.fixture(scope="module")
def run():
    config = configure(KEYS)
    result, asked, states = overheard(config)
    shards = house_of(config).shards
    data = [
        (shards[p].train["images"].flatten(1).double(), shards[p].train["labels"]) for p in range(3)
    ]
    assert len({len(y) for _, y in data}) == 3, "of unequal size"
    tuned = [[(q, a) for q, _, a in asked if q.kind == "tune" and q.round == i] for i in (1, 2, 3)]
    return result, tuned, states, data


def test_clients_train_their_ranks_under_their_masks_and_importance_is_of_their_products(run):
    result, tuned, states, data = run
    labels = [len(y) for _, y in data]
    start = whole = tuned[0][0][0].weights
    worth: dict[str, Tensor] = {}
    for i, (asks, state) in enumerate(zip(tuned, states, strict=True)):
        products, now = dict.fromkeys(PATHS, 0.0), dict.fromkeys(LAYERS, 0.0)
        if i == 1:
            kept_by(flat(state.masks), flat(worth), count(flat(state.masks), 0.5))
        for p, (q, _) in enumerate(asks):
            density, rank = ARMS[(p + i) % 4]
            assert q.adapters[f"{PATHS[0]}{UP}"].shape[1] == rank
            if i:
                kept = count(flat(q.masks), 1 - density * 0.5)
                alive = flat(state.masks)
                kept_by(flat(q.masks)[alive], flat(worth)[alive], kept)
            after = descended(q.weights, q.adapters, q.masks, *data[p])
            for path, name in zip(PATHS, LAYERS, strict=True):
                share, made = labels[p] / sum(labels), product(after, path)
                products[path] += share * made
                now[name] += share * (made - product(q.adapters, path)).square()
        found = state.memories["fedspine"].importance
        for path, name in zip(PATHS, LAYERS, strict=True):
            came = now[name] * (whole[name] * state.masks[name]).double().square()
            worth[name] = 0.5 * worth[name] + 0.5 * came if i else came
            near = 1e-4 * float(worth[name].max())
            torch.testing.assert_close(found[name].double(), worth[name], atol=near, rtol=1e-3)
            wanted = state.masks[name] * (start[name].double() + nearest(products[path], 4))
            close = {"atol": 1e-5, "rtol": 1e-4}
            torch.testing.assert_close(state.weights[name].double(), wanted, **close)
        whole = state.weights
    assert int(flat(states[-1].masks).sum()) == count(flat(states[-1].masks), 0.5)
    assert 0.5 < result.summary["own_sparsity"] < 0.75


def test_a_reward_is_the_fall_of_the_loss_for_a_second_of_a_device_that_cuts_out_the_rest(run):
    _, tuned, states, _ = run
    sums = [[0.0] * 4 for _ in range(3)]
    last: dict[int, float] = {}
    for i, (asks, state) in enumerate(zip(tuned, states, strict=True)):
        losses = [a.totals["loss"] / a.totals["count"] for _, a in asks]
        rates = []
        for p, (q, a) in enumerate(asks):
            size = 4 * sum(t.numel() for t in q.adapters.values())
            work = 6 * int(flat(q.masks).sum()) * a.totals["count"]
            seconds = (2 * size + flat(q.masks).numel() / 8) / 1e6 + work / 1e9
            rates.append((last.get(p, sum(losses) / 3) - losses[p]) / seconds)
        last = dict(enumerate(losses))
        for p, rate in enumerate(rates):
            sums[p][(p + i) % 4] += rate / max(map(abs, rates))
            known = state.memories["fedspine"].tried[p]
            assert known.sums == pytest.approx(sums[p])
            assert known.times == tuple(int((arm - p) % 4 <= i) for arm in range(4))


def test_seconds_are_those_of_a_clients_device():
    device = SimpleNamespace(flops=2e9, up=5e5, down=4e6)
    r: Any = SimpleNamespace(plan=SimpleNamespace(fleet=[None, device]))
    masks = {"w": torch.arange(80).reshape(8, 10) < 30}
    found = fedspine._seconds(1, masks, {"a": torch.zeros(7), "b": torch.zeros(3)}, 50.0, r)
    assert found == pytest.approx((40 + 80 / 8) / 4e6 + 6 * 30 * 50 / 2e9 + 40 / 5e5)


def test_what_was_tried_least_is_tried_again_where_means_are_alike():
    bounds = [0.1 + math.sqrt(2 * math.log(5) / n) for n in (4, 1)]
    assert with_arm(Tried((4, 1), (0.4, 0.1)), 0, 1.0).arm == int(np.argmax(bounds)) == 1
    bounds = [mean + math.sqrt(2 * math.log(5) / n) for mean, n in ((0.85, 4), (0.1, 1))]
    assert with_arm(Tried((4, 1), (3.4, 0.1)), 0, 1.0).arm == int(np.argmax(bounds)) == 1
    assert with_arm(Tried((4, 1), (0.8, 0.1)), 0, 0.0).arm == 0, "by the means alone"
    assert with_arm(Tried((0, 0), (0.0, 0.0)), 5, 1.0).arm == 1, "in turn, by the partition"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"targets": ("features.1",)}, "has no factors"),
        ({"warmup": 0}, "^warmup=0: who has not trained"),
        ({"ranks": (2,), "method_options": {"densities": (1.0,)}}, "nothing to choose"),
        ({"method_options": {"densities": (0.5, 0.2)}}, "1.0 among them"),
    ],
)
def test_what_it_does_not_go_with_is_said_before_round_one(given, says):
    with pytest.raises(ConfigError, match=says):
        overheard(configure({**KEYS, **given}))
