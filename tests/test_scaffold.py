"""SCAFFOLD against the paper's loop in NumPy; what it does not go with; killed, lost, on nodes."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune import federate
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.config.rates import learning_rate
from fedprune.engines.inline import inline_port
from fedprune.options.refusal import ConfigError
from tests.remembering import apart
from tests.runs import Spy

KEYS: dict[str, Any] = {"task": "planes", "plugin": str(Path(__file__).with_name("remembering.py"))}
KEYS |= {"engine": "inline", "clients": 6, "cohort": 4, "hosts": 3, "rounds": 7, "warmup": 2}
KEYS |= {"optimizer": "sgd", "lr": 0.02, "local_steps": 5, "batch_size": 64, "seed": 3}
KEYS |= {"scaffold": True, "score": "magnitude", "sparsity": 0.5, "end": 5, "server_lr": 0.8}
KEYS |= {"split": "iid", "weight_decay": 0.01, "min_clients": 2}


def gradient(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the mean over rows of |w x - y|², and of the weight decay."""
    return 2 * (x @ w.T - y).T @ x / len(x) + 0.01 * w


def test_it_is_the_papers_loop():
    """Algorithm 1, option II, with the clients' variates sent; partition 1 is lost in round 3."""
    config = configure(KEYS)
    eye = Spy(
        inline_port(build_host(config)),
        lambda q, p: q.kind == "tune" and (q.round, p) in {(3, 1), (3, 4)},
    )
    result = federate(config, eye.port)
    data = [{k: v.double().numpy() for k, v in s.train.items()} for s in apart(config)]
    own = defaultdict(lambda: np.zeros((3, 8)))
    c, w = np.zeros((3, 8)), None
    for question, _, aggregate in eye.asked:
        if question.kind != "tune":
            continue
        sent = question.weights["weight"].double().numpy()
        mask = question.masks["weight"].numpy()
        w = sent if w is None else w * mask
        np.testing.assert_allclose(sent, w, atol=2e-6)
        told = question.given.get("weight")
        np.testing.assert_allclose(0 if told is None else told.numpy() * mask, c * mask, atol=1e-4)
        eta, moves, news = learning_rate(config, question.round), [], []
        for p in aggregate.answered:
            y = w.copy()
            for _ in range(5):
                y = y - eta * mask * (gradient(y, data[p]["x"], data[p]["y"]) - own[p] + c)
            fresh = mask * (own[p] - c + (w - y) / (5 * eta))
            moves, news = [*moves, y - w], [*news, fresh - own[p] * mask]
            own[p] = fresh
        w = w + 0.8 * np.mean(moves, axis=0)
        c = mask * (c + len(moves) / 6 * np.mean(news, axis=0))
    np.testing.assert_allclose(result.state.weights["weight"].numpy(), w, atol=2e-6)
    assert [row["round"] for row in result.rows if row["answered"] < 4] == [3]
    everyone = np.mean([own[p] for p in range(6)], axis=0)
    np.testing.assert_allclose(c * mask, everyone * mask, atol=1e-4)


@pytest.mark.slow
def test_it_takes_drift_away():
    """Of clients with planes of their own the mean is learned: FedAvg ends beside it."""
    keys = {**KEYS, "sparsity": 0.0, "rounds": 24, "warmup": 0, "cohort": 6, "local_steps": 8}
    keys |= {"lr": 0.06, "hosts": 1, "lr_schedule": "constant", "server_lr": 1.0}
    keys = {k: v for k, v in keys.items() if k not in {"end", "score"}} | {"weight_decay": 0.0}
    found = federate(configure(keys))
    plainly = {"scaffold": False, "momentum": 0.0, "clip": 0.0, "weighting": "equal"}
    plain = federate(configure({**keys, **plainly}))
    data = [{k: v.double().numpy() for k, v in s.train.items()} for s in apart(configure(keys))]
    slope = sum(2 * d["x"].T @ d["x"] / len(d["x"]) for d in data)
    best = np.linalg.solve(slope, sum(2 * d["x"].T @ d["y"] / len(d["x"]) for d in data)).T
    far = {
        name: np.abs(run.state.weights["weight"].numpy() - best).max()
        for name, run in (("scaffold", found), ("plain", plain))
    }
    assert far["scaffold"] < 1e-3 < 0.01 < far["plain"], far


@pytest.mark.parametrize(
    "method", [{"method": "heterofl"}, {"method": "lotteryfl"}, {"method": "fedrts"}]
)
def test_a_method_of_models_of_their_own_or_of_regrowth_refuses_it(method: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"^scaffold=True: .*; allowed: false$"):
        federate(configure({**KEYS, **method, "schedule": "cubic"}))
