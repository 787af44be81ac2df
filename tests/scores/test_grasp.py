import copy

import pytest
import torch
from specimens import built, evidence_of, taken
from torch import nn

from fedprune.scores.catalog import SCORES
from fedprune.tasks.task import Part


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
    assert second.given is not None
    sums = {n: torch.full_like(w, 6.0) for n, w in s.weights.items()}
    given = second.given(evidence_of(s, sums, 4.0))
    assert {float(v) for t in given.values() for v in t.flatten()} == {1.5}
