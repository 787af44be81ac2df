"""SpaFL against its loop in torch, whose autograd takes a step function for the identity."""

import numpy as np
import torch
from torch import Tensor

from tests.methods.test_regimes import KEYS
from tests.remembering import apart
from tests.runs import overheard, tiny

PENALTY, RAMP = 1.5, 2


class Step(torch.autograd.Function):
    """1 above 0, else 0; its gradient is that of the identity."""

    @staticmethod
    def forward(_ctx, x: Tensor) -> Tensor:
        return (x > 0).double()

    @staticmethod
    def backward(_ctx, slope: Tensor) -> Tensor:
        return slope


def masked(w: Tensor, tau: Tensor) -> Tensor:
    sizes = w.abs().mean(1).view(-1, 1).repeat(1, w.shape[1])
    return w * Step.apply(sizes - tau.view(-1, 1))


def trained(w: Tensor, tau: Tensor, x: Tensor, y: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    w, tau = (t.clone().requires_grad_() for t in (w, tau))
    descent = torch.optim.SGD([w, tau], 0.05, momentum=0.5)
    for _ in range(3):
        loss = (x @ masked(w, tau).T - y).square().sum() / len(x)
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
            own[k], its = trained(own[k], tau, d["x"], d["y"], factor)
            found.append(its)
        mean = sum(found) / 3
        moved, tau = mean - tau, mean
        memory = state.memories["spafl"]
        np.testing.assert_allclose(memory.thresholds["weight"].numpy(), tau.numpy(), atol=1e-6)
        np.testing.assert_allclose(memory.moved["weight"].numpy(), moved.numpy(), atol=1e-6)
        kept = [
            float((masked(w, its) != 0).double().mean()) for w, its in zip(own, found, strict=True)
        ]
        assert torch.equal(state.weights["weight"], start.float())
    assert min(kept) < 1, "something is pruned"
    assert abs(result.rows[-1]["method"]["density"] - sum(kept) / 3) < 1e-9
    loss = count = 0.0
    for w, its, shard in zip(own, found, apart(config), strict=True):
        error = shard.test["x"].double() @ masked(w, its).T - shard.test["y"].double()
        loss, count = loss + float(error.square().sum()), count + len(error)
    measured = result.summary["quality"]["final"]
    np.testing.assert_allclose(measured["loss"], loss / count, rtol=1e-5)
