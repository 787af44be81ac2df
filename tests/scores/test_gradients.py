import copy

import pytest
import torch
from specimens import built, evidence_of, furthest, probe_of, settled, taken
from torch import nn

from fedprune.scores.catalog import SCORES
from fedprune.scores.gradients import by_batch, by_client, gradient, mean_square, taylor, watched
from fedprune.tasks.task import Loss, Part, batches
from fedprune.tensors.named import Tensors


def gradients(s, part) -> Tensors:
    parameters = [s.model.get_parameter(n) for n in s.layout.prunable]
    found = torch.autograd.grad(s.loss(s.model, part).total, parameters)
    return dict(zip(s.layout.prunable, found, strict=True))


def test_squares_per_batch_and_per_client_by_hand():
    s = built("cnn")
    part = s.shards[1]
    cut = list(batches(part, 8))
    assert [len(b["labels"]) for b in cut] == [8, 3]
    each = [gradients(s, b) for b in cut]
    per_batch = {n: each[0][n] ** 2 / 8 + each[1][n] ** 2 / 3 for n in each[0]}
    assert furthest(by_batch(mean_square)(probe_of(s, cut)), per_batch) < 1e-12
    per_client = {n: g**2 / 11 for n, g in gradients(s, part).items()}
    assert furthest(by_client(mean_square)(probe_of(s, cut)), per_client) < 1e-12


def test_what_is_watched_is_taken_at_the_weights_of_each_step():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    with watched(taylor)(model, None, ["weight"]) as watcher:
        for g, w, count in [(0.5, 2.0, 4), (-1.0, 3.0, 2)]:
            model.weight.data.fill_(w)
            model.weight.grad = torch.full((1, 1), g)
            watcher.after_backward(count)
        model.weight.grad = None
        watcher.after_backward(5)  # nothing reached it
    assert watcher.sums["weight"].item() == 4 * 0.5 * 2.0 + 2 * -1.0 * 3.0


def test_a_gradient_is_the_sum_over_all_uses_of_a_tied_weight():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        part = {"x": torch.randn(5, 3).double(), "labels": torch.zeros(5)}
        s = settled(model, lambda m, b: Loss(m(b["x"]).square().sum(), len(b["x"]), 0), (part,), 1)
    assert s.layout.prunable == ("0.weight",)
    w = model[0].weight.detach().clone().requires_grad_()
    (part["x"] @ w.t() @ w.t()).square().sum().backward()
    got = by_batch(gradient)(probe_of(s, [part]))["0.weight"]
    assert torch.allclose(got, w.grad)


def squared_norm(model: nn.Module, names: tuple[str, ...], part: Part) -> float:
    """|mean gradient|² over the prunable tensors' living weights."""
    s = built("cnn")
    parameters = [model.get_parameter(n) for n in names]
    found = torch.autograd.grad(s.loss(model, part).total / len(part["labels"]), parameters)
    return sum(float((g * s.masks[n]).square().sum()) for g, n in zip(found, names, strict=True))


def test_removing_what_scores_high_costs_gradient_norm():
    """D |g|² along w is 2 w·(Hg): the score, by scaling single weights up and down."""
    s = built("cnn")
    names, part = s.layout.prunable, s.pooled([0, 1, 2])
    scores = SCORES["grasp"].finalise(taken(SCORES["grasp"], s, list(s.shards)))
    model = copy.deepcopy(s.model)
    for name in names:
        flat = model.get_parameter(name).detach().view(-1)
        for place in scores[name].abs().flatten().topk(4).indices.tolist():
            held, norms = flat[place].item(), []
            for scale in (1 + 1e-5, 1 - 1e-5):
                flat[place] = held * scale
                norms.append(squared_norm(model, names, part))
            flat[place] = held
            change = (norms[0] - norms[1]) / 2e-5
            got = 2 * scores[name].flatten()[place].item()
            assert got == pytest.approx(change, rel=1e-3, abs=1e-4 * float(scores[name].max()))


def test_what_is_sent_along_is_the_mean_gradient():
    s = built("cnn")
    first, second = SCORES["grasp"].asks
    assert first.given is None
    sums = {n: torch.full_like(w, 6.0) for n, w in s.weights.items()}
    given = second.given(evidence_of(s, sums, 4.0))
    assert {float(v) for t in given.values() for v in t.flatten()} == {1.5}
