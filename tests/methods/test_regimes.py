"""Methods whose clients train in a way of their own, against their papers' loops in NumPy.

A linear model of squared errors, clients of unequal size, steps on all that a client has.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedprune.learning.manners import sparse_inputs
from fedprune.options.refusal import ConfigError
from tests.remembering import apart
from tests.runs import overheard, tiny

KEYS: dict[str, Any] = {
    "task": "planes", "plugin": str(Path(__file__).parents[1] / "remembering.py"), "split": "iid",
    "clients": 3, "cohort": 3, "rounds": 3, "sparsity": 0.5, "optimizer": "sgd", "momentum": 0.0,
    "clip": 0.0, "lr": 0.05, "batch_size": 10_000, "local_steps": 2, "lr_schedule": "constant",
    "warmup": 0, "end": 1,
}  # fmt: skip
Array = np.ndarray


def top(values: Array, count: int) -> Array:
    """Flags of the largest |values|."""
    flags = np.zeros(values.size, bool)
    flags[np.argsort(-np.abs(values).ravel(), kind="stable")[:count]] = True
    return flags.reshape(values.shape)


def slope(w: Array, x: Array, y: Array, inputs: float = 0.0) -> Array:
    """Of the mean of |w x - y|², by all inputs or the largest part of them."""
    seen = x * top(x, round((1 - inputs) * x.size))
    return 2 * (x @ w.T - y).T @ seen / len(x)


def plainly(w: Array, x: Array, y: Array, steps: int = 2) -> Array:
    for _ in range(steps):
        w = w - 0.05 * slope(w, x, y)
    return w


def of_powers(w: Array, x: Array, y: Array) -> Array:
    for _ in range(2):
        theta = np.sign(w) * np.abs(w) ** (1 / 1.5)
        g = slope(w, x, y, float((w == 0).mean()))
        theta = theta - 0.05 * 1.5 * np.abs(theta) ** 0.5 * g
        w = np.sign(theta) * np.abs(theta) ** 1.5
    return w


def by_the_largest(w: Array, x: Array, y: Array) -> Array:
    for _ in range(2):
        w = w - 0.05 * slope(w * top(w, 12), x, y, 0.5)
    return w


def sparsyfed(_w: Array, _m: Array, own: list[Array], p: Array) -> Array:
    return sum(pk * wk * top(wk, 12) for pk, wk in zip(p, own, strict=True))


def complement(w: Array, m: Array, own: list[Array], p: Array) -> Array:
    mean = sum(pk * wk for pk, wk in zip(p, own, strict=True))
    return w + 1.5 * (mean - w) if m.all() else m * w + 1.5 * ~m * mean


def zerofl(_w: Array, _m: Array, own: list[Array], p: Array) -> Array:
    return sum(pk * wk * top(wk, 17) for pk, wk in zip(p, own, strict=True))


def zerofl_diff_weights(w: Array, _m: Array, own: list[Array], p: Array) -> Array:
    return w + sum(pk * (wk - w) * top(wk, 17) for pk, wk in zip(p, own, strict=True))


def zerofl_diff(w: Array, _m: Array, own: list[Array], p: Array) -> Array:
    return w + sum(pk * (wk - w) * top(wk - w, 17) for pk, wk in zip(p, own, strict=True))


SENT = {"ratio": "0.2"}
CASES = {
    "sparsyfed": (sparsyfed, of_powers, {"power": "1.5"}),
    "complement-sparsification": (complement, plainly, {}),
    "zerofl": (zerofl_diff, by_the_largest, SENT),
    "zerofl weights": (zerofl, by_the_largest, {**SENT, "send": "weights"}),
    "zerofl diff-weights": (zerofl_diff_weights, by_the_largest, {**SENT, "send": "diff-weights"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_papers_loop(case):
    average, train, options = CASES[case]
    config = tiny(**KEYS, method=case.split()[0], method_options=options)
    _, asked, states = overheard(config)
    data = [{k: v.double().numpy() for k, v in s.train.items()} for s in apart(config)]
    sizes = np.array([len(d["x"]) for d in data])
    assert len(set(sizes)) == 3, "of unequal size"
    first = next(q for q, _, _ in asked if q.kind == "tune")
    w, m = first.weights["weight"].double().numpy(), np.ones((3, 8), bool)
    for state in states:
        own = [train(w, d["x"], d["y"]) for d in data]
        w = average(w, m, own, sizes / sizes.sum())
        m = top(w, 12)
        np.testing.assert_allclose(state.weights["weight"].numpy(), w * m, atol=1e-5)
        w = w if case.startswith("zerofl") else w * m
        assert (state.masks["weight"].numpy() == m).all()
    assert m.sum() == 12


@pytest.mark.parametrize("method", ["zerofl", "sparsyfed", "complement-sparsification"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dp", "client"),
        ("scaffold", True),
        ("unit", "row"),
        ("shrink", "every"),
        ("score", "taylor"),
    ],
)
def test_what_does_not_go_with_it_is_refused(method, key, value):
    more = {"dp_noise": 1.0} if key == "dp" else {"optimizer": "sgd"} if key == "scaffold" else {}
    keys = {"schedule": "linear", "model": "mlp", "optimizer": "sgd", **more, key: value}
    with pytest.raises(ConfigError, match=rf"^{key}=.*; allowed: "):
        overheard(tiny(method=method, **keys))


@pytest.mark.parametrize("method", ["zerofl", "sparsyfed"])
def test_what_comes_on_own_masks_is_no_secure_sum(method):
    with pytest.raises(ConfigError, match=r"^secure='secagg': .* of their own; allowed: none"):
        overheard(tiny(method=method, model="mlp", end=3, secure="secagg"))


def test_a_convolution_takes_its_gradient_by_the_largest_inputs_alone():
    gen = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, stride=2, padding=1)).double()
    x = torch.randn(4, 2, 6, 6, generator=gen, dtype=torch.float64).requires_grad_()
    weight, bias = net[0].weight, net[0].bias
    with sparse_inputs(net, {"0.weight": weight}, 0.75).gradients():
        found = net(x)
        found.square().sum().backward()
    assert torch.equal(found, net(x))
    slope, how = 2 * found.detach(), {"stride": 2, "padding": 1}
    few = x.detach() * torch.from_numpy(top(x.detach().numpy(), x.numel() // 4))
    of_weights = torch.nn.grad.conv2d_weight(few, weight.shape, slope, **how)
    of_inputs = torch.nn.grad.conv2d_input(x.shape, weight.detach(), slope, **how)
    for left, right in ((weight, of_weights), (x, of_inputs), (bias, slope.sum((0, 2, 3)))):
        torch.testing.assert_close(left.grad, right)
