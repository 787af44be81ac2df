"""Rules that make one score of many clients' against numpy and scipy, and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedprune.protocol.messages import Answer
from fedprune.protocol.running_sum import as_sum, summed
from fedprune.scores.combine import COMBINES, NORMALISE, NORMALISE_SUMMARIES, l1_normalised, ranks

SCORES = st.lists(
    st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, 1.0, 1.0])), min_size=1
)
LABELS = [3.0, 40.0, 11.0, 7.0, 100.0]


def drawn(clients: int, size: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(clients, size, generator=torch.Generator().manual_seed(seed))


def merged(name: str, scores: Tensor, trim: float = 0.0) -> Tensor:
    return COMBINES[name].merge(scores, trim)


def weighted(name: str, scores: Tensor) -> np.ndarray:
    """What the server has of a rule that needs only a sum: transformed, weighted, added up."""
    rule = COMBINES[name]
    sent = [rule.transform(s).float() for s in scores]
    answers = [Answer(s, w, {}) for s, w in zip(sent, LABELS, strict=False)]
    aggregate = summed(as_sum(a, p, 0) for p, a in enumerate(answers))
    return (aggregate.total / aggregate.weight).numpy()


def clipped(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1)
    return (rows * np.minimum(1.0, np.median(norms) / norms)[:, None]).mean(0)


TRANSFORMS = {
    "mean": lambda rows: rows,
    "mean-absolute": np.abs,
    "second-moment": np.square,
    "rank-mean": lambda rows: stats.rankdata(rows, axis=1) / rows.shape[1],
}
ONE_BY_ONE = {
    "median": lambda rows, _: np.median(rows, axis=0),
    "trimmed-mean": lambda rows, trim: stats.trim_mean(rows, trim, axis=0),
    "clipped-mean": lambda rows, _: clipped(rows),
}


def by_oracle(name: str, rows: np.ndarray, labels: list[float], trim: float = 0.2) -> np.ndarray:
    """What comes of clients' scores by numpy and scipy."""
    if name in ONE_BY_ONE:
        return ONE_BY_ONE[name](rows, trim)
    return np.average(TRANSFORMS[name](rows), axis=0, weights=labels)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_means_are_numpys_average_by_labels(name):
    scores = drawn(5)
    expected = by_oracle(name, scores.numpy().astype(float), LABELS)
    np.testing.assert_allclose(weighted(name, scores), expected, rtol=1e-6, atol=1e-7)


def test_every_rule_has_an_oracle_here():
    by_value = {name for name, rule in COMBINES.items() if rule.valued and not rule.pooled}
    assert by_value == {*TRANSFORMS, *ONE_BY_ONE}
    assert {name for name in by_value if COMBINES[name].merge} == ONE_BY_ONE.keys()
    assert {n for n, r in COMBINES.items() if r.pooled} == {"sum"}
    assert {n for n, r in COMBINES.items() if not r.valued} == {"votes"}
    assert all(rule.summary and rule.source for rule in COMBINES.values())
    assert NORMALISE_SUMMARIES.keys() == NORMALISE.keys()


@given(SCORES)
def test_ranks_are_scipys_with_ties_shared(values):
    flat = torch.tensor(values)
    seen = ranks(flat).numpy()
    np.testing.assert_allclose(seen, stats.rankdata(flat.numpy()) / len(values), rtol=1e-12)


def test_ranks_by_hand():
    assert ranks(torch.tensor([5.0, -1.0, 5.0, 7.0])).tolist() == [2.5 / 4, 0.25, 2.5 / 4, 1.0]
    assert ranks(torch.empty(0)).tolist() == []
    same = ranks(torch.tensor([0.0, 3.0, 1e-30])) * 1e9
    assert torch.equal(same / 1e9, ranks(torch.tensor([0.0, 3.0, 1e-30]) * 1e6)), "any scale"


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 5, 9, 10])
@pytest.mark.parametrize("trim", [0.1, 0.2, 0.34, 0.49])
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_rules_over_clients_one_by_one_are_numpys_and_scipys(name, trim, clients):
    scores = drawn(clients) * torch.arange(1.0, clients + 1)[:, None]
    # One at least at either end, as soon as somebody is left in the middle.
    least = (1 + 1e-9) / clients if clients >= 3 else 0.0
    expected = by_oracle(name, scores.numpy().astype(float), LABELS, max(trim, least))
    np.testing.assert_allclose(merged(name, scores, trim).numpy(), expected, rtol=1e-9)


def test_a_client_without_any_score_is_no_division_by_zero():
    scores = torch.cat([drawn(2), torch.zeros(1, 30)])
    assert torch.isfinite(merged("clipped-mean", scores)).all()
    assert not merged("clipped-mean", torch.zeros(3, 4)).any()
    assert l1_normalised(torch.zeros(4)).tolist() == [0.0] * 4


def top(scores: Tensor, keep: int) -> set[int]:
    return set(scores.argsort(descending=True, stable=True)[:keep].tolist())


def of_twenty(name: str, scores: Tensor, keep: int) -> Tensor:
    """What the server ranks by, if these are the clients' scores; liars rank and vote as such."""
    if name == "votes":
        votes = torch.zeros_like(scores)
        return votes.scatter_(1, scores.argsort(dim=1, descending=True)[:, :keep], 1.0).sum(0)
    if name in {"mean", "rank-mean"}:
        return torch.stack([COMBINES[name].transform(s) for s in scores]).mean(0)
    return merged(name, scores, 0.3)


@pytest.mark.parametrize(
    "name", ["mean", "rank-mean", "median", "trimmed-mean", "clipped-mean", "votes"]
)
def test_six_of_twenty_that_score_upside_down_and_loud(name):
    """What is kept without them stays kept, 85 of 100 at least; by the mean next to nothing."""
    truth = drawn(1, 500).abs()
    scores = (truth + 0.3 * drawn(20, 500, seed=1)).abs()
    lying = scores.clone()
    lying[:6] = 1000.0 * (scores[:6].amax(dim=1, keepdim=True) - scores[:6])
    clean, found = (top(of_twenty(name, s, 100), 100) for s in (scores, lying))
    shared = len(clean & found)
    assert shared < 10 if name == "mean" else shared >= 85


def test_l1_takes_the_scale_away():
    flat = drawn(1)[0]
    for seen in (l1_normalised(flat * size) for size in (1e-30, 1.0, 1e30)):
        assert float(seen.abs().sum()) == pytest.approx(1.0)
        assert seen.dtype == torch.float64
        assert torch.allclose(seen, l1_normalised(flat), rtol=1e-5)


@pytest.mark.parametrize("name", NORMALISE)
def test_normalising_keeps_the_order_of_scores(name):
    flat = torch.tensor([0.5, -2.0, 3.0, 0.0, 0.5])
    seen = NORMALISE[name](flat)
    assert torch.equal(seen.argsort(stable=True), flat.argsort(stable=True))
    assert math.isclose(float(seen[0]), float(seen[4])), "ties stay ties"
