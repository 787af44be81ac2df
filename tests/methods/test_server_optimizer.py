"""The server's steps against the papers' loops in NumPy, over what clients answered."""

import numpy as np
import pytest
import torch

from fedprune.learning.server_steps import (
    SERVER_OPTIMIZERS,
    ServerMoments,
    ServerRates,
    server_step,
)
from tests.methods.test_regimes import KEYS as PLANES
from tests.runs import house_of, overheard, tiny

KEYS = {
    **{**PLANES, "rounds": 4, "warmup": 1, "end": 3, "score": "magnitude", "batch_size": 16},
    **{"momentum": None, "clip": None, "lr_schedule": None},
}


@pytest.mark.parametrize(
    ("name", "lr", "b1"),
    [("momentum", 0.7, 0.6), ("adagrad", 0.01, 0.0), ("adam", 0.02, 0.9), ("yogi", 0.01, 0.5)],
)
def test_it_is_the_papers_loop_on_what_is_kept(name, lr, b1):
    rates = {"server_lr": lr, "server_momentum": b1}
    rates |= {} if name == "momentum" else {"server_floor": 1e-2}
    rates |= {"server_decay": 0.8} if name in ("adam", "yogi") else {}
    _, asked, states = overheard(tiny(**KEYS, server_optimizer=name, **rates))
    m, v = np.zeros((3, 8)), np.full((3, 8), 1e-4)
    tuned = [each for each in asked if each[0].kind == "tune"]
    for (question, _, came), state in zip(tuned, states, strict=True):
        mask = question.masks["weight"].numpy()
        delta = np.zeros((3, 8))
        delta[mask] = came.total.numpy() / came.weight
        m = mask * (b1 * m + (delta if name == "momentum" else (1 - b1) * delta))
        squares = {
            "momentum": v,
            "adagrad": v + delta**2,
            "adam": 0.8 * v + 0.2 * delta**2,
            "yogi": v - 0.2 * delta**2 * np.sign(v - delta**2),
        }
        v = np.where(mask, squares[name], 1e-4)
        step = lr * m / (1.0 if name == "momentum" else np.sqrt(v) + 1e-2)
        want = question.weights["weight"].numpy() + step
        np.testing.assert_allclose(state.weights["weight"].numpy(), want * mask, atol=1e-6)
    assert not mask.all()


@pytest.mark.slow
def test_statistics_take_their_whole_mean_change():
    """With the adaptive rules --server-lr is the size of a step, which is no part of a mean."""
    keys = {"rounds": 2, "warmup": 0, "end": 2}
    plain, adam = (tiny(**keys, server_optimizer=o) for o in ("sgd", "adam"))
    one, other = (overheard(config)[2][0].weights for config in (plain, adam))
    names = house_of(plain).layout.statistics
    assert names
    assert all(torch.equal(one[n], other[n]) for n in names)


@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_a_weight_that_comes_back_begins_anew(name):
    rule, rates = SERVER_OPTIMIZERS[name], ServerRates(1.0, 0.5, 0.9, 1e-2)
    moments, change = ServerMoments(), {"w": torch.ones(2)}
    for kept in (True, False):
        masks = {"w": torch.tensor([True, kept])}
        steps, moments = server_step(rule, moments, change, masks, rates)
    assert steps["w"][1] == moments.first["w"][1] == 0.0
    assert float(moments.second["w"][1]) == pytest.approx(1e-4)
    assert moments.second["w"][0] > 0.1


def test_small_changes_are_not_lost_below_small_rates():
    """The step is of the mean change as it came, not of what a small rate left of it."""
    rates = {"server_lr": 1e-6, "server_momentum": 0.0, "server_floor": 1e-2, "server_decay": 0.8}
    _, asked, states = overheard(tiny(**KEYS, server_optimizer="adam", **rates))
    question, _, came = next(a for a in asked if a[0].kind == "tune")
    mask, delta = question.masks["weight"].numpy(), np.zeros((3, 8))
    delta[mask] = came.total.numpy() / came.weight
    second = states[0].memories["server-optimizer"].moments.second["weight"].numpy()
    np.testing.assert_allclose(second, 0.8e-4 + 0.2 * delta**2, rtol=1e-3)
