"""The server's steps against the papers' loops in NumPy, over what clients answered."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune.methods.server_optimizer import Memory
from tests.runs import overheard, tiny

KEYS: dict[str, Any] = {
    "task": "planes", "plugin": str(Path(__file__).parents[1] / "remembering.py"), "split": "iid",
    "clients": 3, "cohort": 3, "rounds": 4, "warmup": 1, "end": 3, "score": "magnitude",
    "sparsity": 0.5, "optimizer": "sgd", "lr": 0.05, "batch_size": 16,
}  # fmt: skip


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
    for (question, _, came), state in zip(
        [a for a in asked if a[0].kind == "tune"], states, strict=True
    ):
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
        assert isinstance(state.memories["server-optimizer"], Memory)
    assert not mask.all()
