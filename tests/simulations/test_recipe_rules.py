"""Every recipe against its paper's rule, written down again in plain torch: three unequal clients.

What a recipe departs in is in its file; what is computed here is what remains.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedprune.client.host import Host
from fedprune.config import configure, from_toml
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.server.state import State
from tests.perceptron import LAYERS, SMALL, count, flat, gradients, kept_by, outputs
from tests.runs import house_of, overheard

FOLDER = Path(__file__).parents[2] / "simulations" / "recipes"


@dataclass(frozen=True)
class Played:
    """A recipe's run: what was asked, and the states after its rounds."""

    host: Host
    asked: list[tuple[Question, list[int], Aggregate]]
    states: list[State]

    def questions(self, kind: str) -> list[tuple[Question, Aggregate]]:
        return [(q, aggregate) for q, _, aggregate in self.asked if q.kind == kind]

    def data(self, client: int) -> tuple[Tensor, Tensor]:
        part = self.host.shards[client].train
        return part["images"].flatten(1).double(), part["labels"]


def recipe(name: str, **changes: Any) -> Played:
    text = (FOLDER / f"{name}.toml").read_text()
    given = {k.replace("-", "_"): v for k, v in from_toml(text).items()}
    config = configure({**given, **SMALL, **changes})
    _, asked, states = overheard(config)
    return Played(house_of(config), asked, states)


def wanda(
    weights: dict[str, Tensor], x: Tensor, sparsity: float, rows: bool = True
) -> dict[str, Tensor]:
    """Wanda's masks, a layer behind the pruned ones before it: the least |w|·‖x‖ of every row go.

    Or of every layer.
    """
    weights, masks = dict(weights), {}
    for i, name in enumerate(LAYERS):
        score = weights[name].double().abs() * outputs(weights, x, i).square().sum(0).sqrt()
        ranked = score if rows else score.reshape(1, -1)
        lowest = ranked.argsort(dim=1)[:, : math.floor(sparsity * ranked.shape[1] + 0.5)]
        left = torch.ones_like(ranked, dtype=torch.bool).scatter_(1, lowest, False)
        masks[name] = left.reshape(score.shape)
        weights[name] = weights[name] * masks[name]
    return masks


def test_ssfl():
    run = recipe("ssfl", cohort=2, score_examples=10_000)
    (question, aggregate), *_ = run.questions("score")
    assert aggregate.answered == (0, 1, 2), "all are asked, whoever tunes"
    mean = torch.zeros(len(flat(question.weights)), dtype=torch.float64)
    for client in range(3):
        slopes = gradients(question.weights, *run.data(client))
        mean += (flat(question.weights) * flat(slopes)).abs() / 3
    mask = flat(run.states[0].masks)
    kept_by(mask, mean, count(mask, 0.5))
    weights = [tuned.weight for _, tuned in run.questions("tune")]
    sizes = [len(run.data(client)[1]) for client in range(3)]
    assert weights[0] == sum(sizes[c] for c in run.questions("tune")[0][1].answered)


def test_ssfl_scores_on_one_batch():
    run = recipe("ssfl", rounds=1)
    ((_, aggregate),) = run.questions("score")
    assert (aggregate.totals["count"], aggregate.weight) == (3 * 16, 3.0)


def test_fedprllm():
    run = recipe("fedprllm", cohort=2)
    ((question, aggregate),) = run.questions("score")
    votes = dict.fromkeys(LAYERS, torch.zeros(()))
    for client in range(3):
        masks = wanda(question.weights, run.data(client)[0], 0.5)
        votes = {name: votes[name] + masks[name] for name in LAYERS}
    assert aggregate.votes is not None
    assert int((aggregate.votes != flat(votes)).sum()) <= 4, "but for rounding"
    for name in LAYERS:
        mask = run.states[0].masks[name]
        kept_by(mask, votes[name].double(), count(mask, 0.5))


def test_fedspallm():
    """Clients' own masks, every layer behind the pruned ones; the rest is held with the methods."""
    run = recipe("fedspallm", rounds=1, method_options={"layers": 1.0})
    own = [each for each in run.asked if each[0].kind == "own"]
    assert [who for _, who, _ in own] == [[0], [1], [2]]
    for question, (client,), aggregate in own:
        masks = wanda(question.weights, run.data(client)[0], 0.5, rows=False)
        assert int((aggregate.votes != flat(masks)).sum()) <= 4, "but for rounding"


def test_rigl():
    run = recipe("rigl", rounds=4, end=4, optimizer="sgd")
    before, after = run.states[0], run.states[1]
    (question, _), *_ = [pair for pair in run.questions("score") if pair[0].dense]
    slopes = dict.fromkeys(LAYERS, 0)
    for client in range(3):
        found = gradients(before.weights, *run.data(client))
        slopes = {n: slopes[n] + found[n] * len(run.data(client)[1]) for n in LAYERS}
    assert question.round == 2
    for name in LAYERS:
        old, new = before.masks[name], after.masks[name]
        many = int(old.sum())
        swapped = math.floor(0.15 * (1 + math.cos(math.pi / 4)) * many + 0.5)
        kept_by((old & new)[old], before.weights[name].abs()[old], many - swapped)
        kept_by((new & ~old)[~old], slopes[name].abs()[~old], swapped)
        grown = next(q.weights[name] for q, _ in run.questions("tune") if q.round == 2)
        assert not grown[new & ~old].any(), "from 0"


def test_lottery_ticket():
    run = recipe("lottery-ticket", warmup=2, frequency=2, rounds=8)
    early = run.states[1].weights
    for i, round_ in enumerate((3, 5), start=1):
        (now,) = [q for q, _ in run.questions("tune") if q.round == round_]
        before, mask = run.states[round_ - 2], flat(now.masks)
        alive = flat(before.masks)
        wanted = 1 - 0.2 ** (i / 3)
        kept_by(mask[alive], flat(before.weights).abs()[alive], count(mask, wanted))
        assert torch.equal(flat(now.weights), flat(early) * mask), "back to round 2"
        assert now.lr == 0.1, "and the learning rate begins anew"


def test_exact_wanda():
    run = recipe("exact-wanda", cohort=2)
    first = run.questions("score")[0][0]
    pooled = torch.cat([run.data(client)[0] for client in range(3)])
    masks = wanda(first.weights, pooled, 0.5)
    assert int((flat(run.states[0].masks) != flat(masks)).sum()) <= 4, "but for rounding"


def test_sparsegpt():
    """Algorithm 1 of the paper with 2:4, on the pooled inputs of every layer."""
    run = recipe("sparsegpt", cohort=2, rounds=1, lr=1e-30)
    weights = {n: w.double() for n, w in run.questions("score")[0][0].weights.items()}
    pooled = torch.cat([run.data(client)[0] for client in range(3)])
    for i, name in enumerate(LAYERS):
        x, w = outputs(weights, pooled, i), weights[name].clone()
        hessian = x.T @ x / len(x)
        dead = hessian.diagonal() == 0
        hessian[dead, dead] = 1
        w[:, dead] = 0
        hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
        upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
        gone = torch.zeros_like(w, dtype=torch.bool)
        for j in range(w.shape[1]):
            if j % 4 == 0:
                cost = w[:, j : j + 4].square() / upper.diagonal()[j : j + 4].square()
                gone.scatter_(1, j + cost.argsort(dim=1)[:, :2], True)
            error = torch.where(gone[:, j], w[:, j] / upper[j, j], 0)
            w[:, j:] -= error[:, None] * upper[j, j:]
            w[:, j] = torch.where(gone[:, j], 0, w[:, j])
        weights[name] = w
    for name in LAYERS:
        found = run.states[0].weights[name].double()
        assert int(((found - weights[name]).abs() > 1e-4).sum()) <= 0.01 * found.numel()


@pytest.mark.slow
def test_synflow():
    run = recipe("synflow", rounds=1)
    (tuned, _), *_ = run.questions("tune")
    start = next(q.weights for q, _, _ in run.asked if q.weights)
    mask = {name: torch.ones_like(start[name], dtype=torch.bool) for name in LAYERS}
    n = sum(m.numel() for m in mask.values())
    for step in range(1, 101):
        leaves = {
            k: (w.double().abs() * mask.get(k, 1) if "weight" in k else w.double() * 0)
            for k, w in start.items()
        }
        leaves = {k: w.detach().requires_grad_() for k, w in leaves.items()}
        flow = outputs(leaves, torch.ones(1, 64, dtype=torch.float64)).sum()
        slopes = torch.autograd.grad(flow, [leaves[name] for name in LAYERS])
        score = torch.cat([(leaves[k] * s).flatten() for k, s in zip(LAYERS, slopes, strict=True)])
        kept = n - math.floor((1 - 0.1 ** (step / 100)) * n + 0.5)
        score = torch.where(flat(mask), score, -1.0)
        left = torch.zeros(n, dtype=torch.bool)
        left[score.argsort(descending=True)[:kept]] = True
        parts = left.split([mask[name].numel() for name in LAYERS])
        mask = {k: p.reshape(mask[k].shape) for k, p in zip(LAYERS, parts, strict=True)}
    assert int((flat(tuned.masks) != flat(mask)).sum()) <= 4, "but for rounding"


def test_priprune():
    """A change without its largest 30 %, averaged by labels; while nothing is pruned."""
    run = recipe("priprune", warmup=1)
    (question, _), *_ = run.questions("tune")
    total, labels = 0.0, 0
    for client in range(3):
        x, y = run.data(client)
        change = torch.cat([-0.1 * g.flatten() for g in gradients(question.weights, x, y).values()])
        change[change.abs().topk(math.ceil(0.3 * change.numel())).indices] = 0
        total, labels = total + len(y) * change, labels + len(y)
    after = run.states[0].weights
    moved = torch.cat([(w - question.weights[n]).flatten() for n, w in after.items()])
    assert int(((moved.double() - total / labels).abs() > 1e-6).sum()) <= 6, "but for rounding"
