import itertools
import math
from dataclasses import replace

import pytest
import torch
from specimens import Specimen, evidence_of, probe_of, settled, taken
from torch import Tensor, nn

from fedprune.scores import perturbation
from fedprune.scores.catalog import SCORES
from fedprune.scores.perturbation import CHANGES, REMOVED, effects, pattern, standard_error
from fedprune.structure.layout import Layout
from fedprune.tasks.task import Loss, Part
from fedprune.tensors.named import copied

WEIGHTS = [1.0, -2.0, 0.5]


class Pair(nn.Module):
    """Three weights that matter together."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)


def curved(model: nn.Module, batch: Part) -> Loss:
    w = model.layer.weight[0]
    return Loss((w[0] * w[1] + w[2] ** 2 + 3 * w[0]) * len(batch["x"]), len(batch["x"]), 0)


def pair() -> Specimen:
    part = {"x": torch.zeros(2, 3), "labels": torch.zeros(2)}
    s = settled(Pair(), curved, (part,), 1)
    with torch.no_grad():
        s.model.layer.weight.copy_(torch.tensor([WEIGHTS]))
    return replace(s, masks={"layer.weight": torch.ones(1, 3, dtype=torch.bool)})


def change(gone: tuple[int, ...]) -> float:
    """Of the mean loss, when some of the three weights go."""
    w = [0.0 if g else v for g, v in zip(gone, WEIGHTS, strict=True)]
    return (w[0] * w[1] + w[2] ** 2 + 3 * w[0]) - (1.0 * -2.0 + 0.25 + 3.0)


def chance(gone: tuple[int, ...]) -> float:
    return math.prod(REMOVED if g else 1 - REMOVED for g in gone)


PATTERNS = list(itertools.product([0, 1], repeat=3))


def test_the_estimate_is_unbiased_for_the_signed_difference(monkeypatch):
    """Over all triples of patterns, each with its probability, the mean is the true difference."""
    s = pair()
    true = []
    for j in range(3):
        mean = [
            sum(chance(z) * change(z) for z in PATTERNS if z[j] == side)
            / sum(chance(z) for z in PATTERNS if z[j] == side)
            for side in (1, 0)
        ]
        true.append(mean[0] - mean[1])
    expected, absolute = torch.zeros(1, 3).double(), torch.zeros(1, 3).double()
    for triple in itertools.product(PATTERNS, repeat=3):
        drawn = [torch.tensor([z]).bool() for z in triple]
        monkeypatch.setattr(perturbation, "pattern", lambda _s, i, _n, _w, d=drawn: d[i])
        sums = {CHANGES: 2 * torch.tensor([change(z) for z in triple], dtype=torch.float64)}
        evidence = evidence_of(s, sums, 2.0, probes=3)
        p = math.prod(chance(z) for z in triple)
        expected += p * effects(evidence)["layer.weight"]
        absolute += p * SCORES["perturbation"].finalise(evidence)["layer.weight"]
    assert expected[0].tolist() == pytest.approx(true, abs=1e-12)
    assert (absolute[0, 1:] > torch.tensor(true[1:]).abs() + 0.1).all(), "its absolute value is not"


def test_clients_send_how_much_the_loss_changed_under_the_patterns_that_the_server_draws():
    s = pair()
    sums = SCORES["perturbation"].asks[0].collect(probe_of(s, [s.shards[0]], probes=40, seed=3))
    for i, got in enumerate(sums[CHANGES].tolist()):
        gone = pattern(3, i, "layer.weight", s.layout)[0]
        assert got == pytest.approx(2 * change(tuple(gone.int().tolist())), abs=1e-12)
    assert sums[CHANGES].unique().numel() > 2


def test_patterns_depend_on_seed_number_and_tensor_and_remove_a_tenth():
    layout = Layout(dict.fromkeys("ab", torch.Size([100, 100])), ("a", "b"), (), {})
    drawn = [pattern(1, 0, "a", layout), pattern(2, 0, "a", layout)]
    drawn += [pattern(1, 1, "a", layout), pattern(1, 0, "b", layout)]
    assert torch.equal(drawn[0], pattern(1, 0, "a", layout))
    for one, other in itertools.combinations(drawn, 2):
        assert not torch.equal(one, other)
    assert all(abs(float(d.double().mean()) - REMOVED) < 0.015 for d in drawn)


@pytest.mark.slow
def test_the_standard_error_is_the_spread_of_the_estimate_over_seeds():
    s = pair()
    found, errors = [], []
    for seed in range(150):
        evidence = taken(SCORES["perturbation"], s, [s.shards[0]], probes=60, seed=seed)
        found.append(effects(evidence)["layer.weight"])
        errors.append(standard_error(evidence)["layer.weight"])
    spread: Tensor = torch.cat(found).std(0)
    told = torch.cat(errors).square().mean(0).sqrt()
    assert ((told / spread - 1).abs() < 0.25).all(), (told, spread)


def test_one_pattern_differs_from_nothing():
    s = pair()
    with pytest.raises(ValueError, match=r"^probes=1: .*allowed: >= 2$"):
        effects(evidence_of(s, {CHANGES: torch.ones(1)}, 1.0))


def test_the_weights_are_those_that_were_sent_even_when_a_loss_is_not_finite():
    s = pair()
    before = copied(s.model.state_dict())

    def burst(model: nn.Module, batch: Part) -> Loss:
        return Loss(model.layer.weight.sum() / 0.0, len(batch["x"]), 0)

    probe = probe_of(s, [s.shards[0]], probes=3)
    SCORES["perturbation"].asks[0].collect(replace(probe, loss=burst))
    assert torch.equal(before["layer.weight"], s.model.state_dict()["layer.weight"])
