"""Methods whose clients train in a way of their own, against their papers' loops in NumPy.

A linear model of squared errors, clients of unequal size, steps on all that a client has.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune import RunConfig
from fedprune.learning.manners import part_of_step, sparse_inputs
from fedprune.randomness import generator
from fedprune.tensors.named import copied
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


def apart_in_numpy(config: RunConfig) -> tuple[list[dict[str, Array]], Array]:
    """What the clients have, in float64, and how many examples each; no two have as many."""
    data = [{k: v.double().numpy() for k, v in s.train.items()} for s in apart(config)]
    sizes = np.array([len(d["x"]) for d in data])
    assert len(set(sizes)) == 3
    return data, sizes


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
    data, sizes = apart_in_numpy(config)
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


def test_the_smallest_of_what_is_left_go_and_training_goes_on():
    config = tiny(**{**KEYS, "rounds": 3, "end": 2, "method": "fedmap", "sparsity": 0.75})
    _, asked, states = overheard(config)
    data, sizes = apart_in_numpy(config)
    questions = [q for q, _, _ in asked if q.kind == "tune"]
    w = None
    for question, state, kept in zip(questions, states, (12, 6, 6), strict=True):
        sent, mask = question.weights["weight"].double().numpy(), question.masks["weight"].numpy()
        if w is not None:
            np.testing.assert_allclose(sent, w * top(w, kept), atol=1e-5)
        assert mask.sum() == kept
        own = []
        for d in data:
            start = sent
            for _ in range(2):
                start = start + mask * (plainly(start, d["x"], d["y"], 1) - start)
            own.append(start)
        w = sum(n * o for n, o in zip(sizes, own, strict=True)) / sizes.sum()
        np.testing.assert_allclose(state.weights["weight"].numpy(), w, atol=1e-5)


def test_what_moves_most_becomes_a_clients_own_and_the_rest_is_averaged():
    keys = {**KEYS, "rounds": 7, "local_steps": 3, "sparsity": 0.0, "warmup": None, "end": None}
    keys["momentum"] = 0.5
    options = {"grows": 0.25, "limit": 0.5, "every": 2}
    config = tiny(**keys, method="fedselect", method_options=options)
    result, asked, states = overheard(config)
    data, _ = apart_in_numpy(config)
    shared = next(q for q, _, _ in asked if q.kind == "tune").weights["weight"].double().numpy()
    own = [np.zeros_like(shared) for _ in data]
    mine = [np.zeros(shared.shape, bool) for _ in data]
    held = [m.copy() for m in mine]
    for state in states:
        sums, common = np.zeros_like(shared), np.zeros_like(shared)
        for k, d in enumerate(data):
            w = begun = np.where(held[k], own[k], shared)
            speed = np.zeros_like(w)
            for step in range(3):
                moves = mine[k] if step % 2 == 0 else ~mine[k]
                moves = moves if mine[k].any() else np.ones_like(moves)
                speed = 0.5 * speed + moves * slope(w, d["x"], d["y"])
                w = w - 0.05 * moves * speed
            sums, common = sums + w * ~mine[k], common + ~mine[k]
            own[k], held[k] = w, mine[k]
            room = int(0.5 * w.size) - mine[k].sum()
            few = max(0, min(round(0.25 * (~mine[k]).sum()), room))
            few = 0 if state.round % 2 else few
            moved = np.where(mine[k], -1.0, np.abs(w - begun)).ravel()
            grown = mine[k].copy().ravel()
            grown[np.argsort(-moved, kind="stable")[:few]] = True
            mine[k] = grown.reshape(w.shape)
        shared = np.where(common > 0, sums / np.maximum(common, 1), shared)
        np.testing.assert_allclose(state.weights["weight"].numpy(), shared, atol=1e-6)
    assert len({m.tobytes() for m in mine}) == 3
    assert all(m.sum() == int(0.5 * m.size) for m in mine)
    loss = count = 0.0
    for k, shard in enumerate(apart(config)):
        x, y = (shard.test[n].double().numpy() for n in "xy")
        loss += np.square(x @ np.where(held[k], own[k], shared).T - y).sum()
        count += len(x)
    measured = result.summary["quality"]["own"]
    np.testing.assert_allclose(measured["loss"], loss / count, rtol=1e-5)


def test_a_width_is_drawn_for_every_step_and_weights_are_means_over_their_holders():
    config = tiny(
        **{**KEYS, "sparsity": 1 / 3, "schedule": "one-shot", "local_steps": 4, "unit": "row"},
        **{"method": "fjord", "method_options": {"widths": (1.0, 0.5)}},
    )
    _, asked, states = overheard(config)
    data, _ = apart_in_numpy(config)
    w = next(q for q, _, _ in asked if q.kind == "tune").weights["weight"].double().numpy()
    w = w * (np.arange(3) < 2)[:, None]
    for state in states:
        sums, held = np.zeros((3, 8)), np.zeros((3, 1))
        for k, d in enumerate(data):
            rows, own = [2, 1][k % 2], w.copy()
            gen = generator(config.seed, "widths", state.round, k)
            for _ in range(4):
                drawn = [rows, 1][int(torch.randint(3 - k % 2 - 1, (1,), generator=gen))]
                part = (np.arange(3) < drawn)[:, None]
                own = own - 0.05 * part * slope(own * part, d["x"], d["y"])
            holds = (np.arange(3) < rows)[:, None]
            sums, held = sums + len(d["x"]) * holds * own, held + len(d["x"]) * holds
        w = np.where(held > 0, sums / np.maximum(held, 1), 0.0)
        np.testing.assert_allclose(state.weights["weight"].numpy(), w, atol=1e-5)
        assert state.masks["weight"].any(1).tolist() == [True, True, False]


def test_a_step_computes_with_its_part_alone():
    gen = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).double()
    x = torch.randn(5, 4, generator=gen, dtype=torch.float64)
    part = {f"{i}.weight": torch.arange(n) < n - 1 for i, n in ((0, 3), (1, 2))}
    part = {n: m[:, None].expand_as(net.get_parameter(n)) for n, m in part.items()}
    before = copied(net.state_dict())
    with part_of_step({n: net.get_parameter(n) for n in part}, [part], gen).gradients():
        net(x).square().sum().backward()
    leaves = {n: (w * part.get(n, 1)).requires_grad_() for n, w in before.items()}
    torch.func.functional_call(net, leaves, x).square().sum().backward()
    for n, p in net.named_parameters():
        torch.testing.assert_close(p.grad, leaves[n].grad * part.get(n, 1))
        assert torch.equal(p, before[n])


PENALTY, RAMP = 1.5, 2


class Step(torch.autograd.Function):
    """1 above 0, else 0; its gradient is that of the identity."""

    @staticmethod
    def forward(_ctx, x: Tensor) -> Tensor:
        return (x > 0).double()

    @staticmethod
    def backward(_ctx, slope: Tensor) -> Tensor:
        return slope


def by_thresholds(w: Tensor, tau: Tensor) -> Tensor:
    sizes = w.abs().mean(1).view(-1, 1).repeat(1, w.shape[1])
    return w * Step.apply(sizes - tau.view(-1, 1))


def with_thresholds(
    w: Tensor, tau: Tensor, x: Tensor, y: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    w, tau = (t.clone().requires_grad_() for t in (w, tau))
    descent = torch.optim.SGD([w, tau], 0.05, momentum=0.5)
    for _ in range(3):
        loss = (x @ by_thresholds(w, tau).T - y).square().sum() / len(x)
        descent.zero_grad()
        (loss + factor * torch.exp(-tau).sum()).backward()
        descent.step()
    return w.detach(), tau.detach()


def test_thresholds_alone_travel_and_clients_keep_what_they_trained():
    keys = {**KEYS, "rounds": 8, "local_steps": 3, "sparsity": 0.0, "momentum": 0.5}
    keys |= {"warmup": None, "end": None}
    options = {"penalty": PENALTY, "ramp": RAMP}
    config = tiny(**keys, method="spafl", method_options=options)
    result, asked, states = overheard(config)
    data = [{k: v.double() for k, v in s.train.items()} for s in apart(config)]
    tuned = [a for q, _, a in asked if q.kind == "tune"]
    start = asked[0][0].weights["weight"].double()
    assert all(a.total.numel() == 3 for a in tuned), "a threshold for each row, and nothing else"
    own = [start.clone() for _ in data]
    tau, moved, kept = torch.zeros(3).double(), torch.zeros(3).double(), []
    for t, state in enumerate(states):
        factor = PENALTY / (1 + np.exp(5 - 10 * t / RAMP))
        found = []
        for k, d in enumerate(data):
            own[k] = own[k] - (moved * own[k].sum(1).sign() / 8).view(-1, 1)
            own[k], its = with_thresholds(own[k], tau, d["x"], d["y"], factor)
            found.append(its)
        mean = sum(found) / 3
        moved, tau = mean - tau, mean
        memory = state.memories["spafl"]
        np.testing.assert_allclose(memory.thresholds["weight"].numpy(), tau.numpy(), atol=1e-6)
        np.testing.assert_allclose(memory.moved["weight"].numpy(), moved.numpy(), atol=1e-6)
        kept = [
            float((by_thresholds(w, its) != 0).double().mean())
            for w, its in zip(own, found, strict=True)
        ]
        assert torch.equal(state.weights["weight"], start.float())
    assert min(kept) < 1, "something is pruned"
    assert abs(result.rows[-1]["method"]["density"] - sum(kept) / 3) < 1e-9
    loss = count = 0.0
    for w, its, shard in zip(own, found, apart(config), strict=True):
        error = shard.test["x"].double() @ by_thresholds(w, its).T - shard.test["y"].double()
        loss, count = loss + float(error.square().sum()), count + len(error)
    measured = result.summary["quality"]["final"]
    np.testing.assert_allclose(measured["loss"], loss / count, rtol=1e-5)
