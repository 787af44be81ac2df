"""Randomised response: bits flip at the rate that is said, and counts are right in the mean."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune import RunConfig
from fedprune.client.host import Host
from fedprune.client.partition_answers import answered
from fedprune.methods.scored import scored
from fedprune.privacy.noise import Source, seeded_source, uniforms
from fedprune.privacy.randomised_response import (
    VoteUnits,
    debiased,
    expected_overlap,
    flip_probability,
    responded,
)
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.votes import response_release, vote_units_of, vote_words
from fedprune.server.ask import evidence_of
from fedprune.server.plan import Plan
from fedprune.server.round import Round
from fedprune.server.state import first_state
from fedprune.tensors.models import state_of
from fedprune.tensors.named import copied, full_masks, gathered
from tests.runs import house_of, played, same, tiny

VOTES = {"combine": "votes", "unit": "row", "model": "mlp", "floor": 0}


def test_the_probability_is_that_of_an_even_share_of_epsilon():
    for epsilon, units in ((1.0, 1), (8.0, 512), (8.0, 4), (0.1, 1)):
        p = flip_probability(epsilon, units)
        assert math.log((1 - p) / p) == pytest.approx(epsilon / units, rel=1e-9)
    # The figures of the research: epsilon 8 over 512 bits.
    assert flip_probability(8.0, 512) == pytest.approx(0.496, abs=5e-4)
    # However large epsilon is, the smallest number that can be drawn is below the probability.
    smallest = Source(lambda n: np.zeros(n, dtype=np.uint64), secret=False)
    assert float(uniforms(1, smallest)[0]) < flip_probability(1e9, 3) < 3e-16


def test_bits_flip_at_the_rate_and_units_stay_whole():
    units_voted = VoteUnits(torch.arange(50_000).repeat_interleave(2), 50_000)
    units_voted.places[-6:] = -1
    votes = torch.rand(50_000, generator=torch.Generator().manual_seed(1)) < 0.3
    flat = votes.repeat_interleave(2)
    out = responded(flat, units_voted, 0.2, seeded_source(1, "response"))
    inside = units_voted.places >= 0
    assert out[~inside].all()
    pairs = out[inside].view(-1, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    flipped = pairs[:, 0] != votes[: len(pairs)]
    for kept_ in (True, False):
        rate = flipped[votes[: len(pairs)] == kept_].float().mean()
        assert float(rate) == pytest.approx(0.2, abs=0.01)


def test_counts_are_unbiased():
    clients, p, units = 40, 0.35, 3000
    true = torch.arange(units) % (clients + 1)
    units_voted = VoteUnits(torch.arange(units), units)
    counts = torch.zeros(units)
    for c in range(clients):
        counts += responded(true > c, units_voted, p, seeded_source(c, "response"))
    found = debiased(counts, clients, p)
    sd = math.sqrt(clients * p * (1 - p)) / (1 - 2 * p)
    error = found - true
    assert abs(float(error.mean())) < 5 * sd / math.sqrt(units)
    assert float(error.std()) == pytest.approx(sd, rel=0.05)
    for count in (0, 20, 40):  # at the ends, too
        assert abs(float(error[true == count].mean())) < 5 * sd / math.sqrt(units / 41)


def simulated(p: float, clients: int, units: int, kept_units: int) -> float:
    """The overlap that is expected, by playing it."""
    found = []
    for trial in range(40):
        gen = torch.Generator().manual_seed(trial)
        mask = torch.arange(units) < kept_units
        flips = torch.rand(clients, units, generator=gen) < p
        counts = (mask ^ flips).sum(0) + 0.5 * torch.rand(units, generator=gen)
        found.append(float(mask[counts.topk(kept_units).indices].float().mean()))
    return sum(found) / len(found)


def test_the_expected_overlap_is_that_of_a_simulation_and_goes_from_chance_to_all():
    for case in (
        (0.3, 10, 200, 100),
        (0.45, 10, 500, 100),
        (0.45, 200, 500, 100),
        (0.1, 1, 300, 30),
    ):
        assert expected_overlap(*case) == pytest.approx(simulated(*case), abs=0.03)
    assert expected_overlap(0.5, 10, 100, 20) == pytest.approx(0.2)
    assert expected_overlap(1e-16, 10, 100, 20) == pytest.approx(1.0)
    growing = [expected_overlap(0.45, n, 100, 20) for n in (1, 10, 100, 1000, 10_000)]
    assert growing == sorted(growing)
    assert expected_overlap(0.3, 10, 100, 100) == expected_overlap(0.3, 10, 100, 0) == 1.0


def asked(host: Host, sparsity: float = 0.5) -> Question:
    weights = copied(state_of(host.model))
    masks = full_masks(weights, host.layout.prunable)
    return Question("score", 3, weights, masks, "taylor", sparsity=sparsity)


def votes_of(host: Host, config: RunConfig, question: Question) -> Tensor:
    found = answered(replace(host, config=config), question, 0).votes
    assert found is not None
    return found


def test_a_client_flips_whole_units_of_its_own_mask():
    plain = tiny(**VOTES)
    host, question = house_of(plain), asked(house_of(plain))
    own = votes_of(host, plain, question)
    units_voted = vote_units_of(plain, host.layout, question.masks)
    rows = sum(host.layout.shapes[n][0] for n in host.layout.prunable)
    assert units_voted.units == rows
    loud = votes_of(host, tiny(**VOTES, response=float(rows)), question)
    changed = own != loud
    by_unit = [changed[units_voted.places == u].float().mean() for u in range(rows)]
    assert set(map(float, by_unit)) == {0.0, 1.0}
    p = flip_probability(float(rows), rows)
    assert sum(map(float, by_unit)) / rows == pytest.approx(p, abs=4 * math.sqrt(0.2 / rows))


@pytest.mark.slow
def test_a_strong_epsilon_gives_the_mask_without_response():
    plain, strong = (
        played(tiny(**VOTES, **more)) for more in ({}, {"response": 1e9, "noise_source": "seeded"})
    )
    assert same(plain.state.masks, strong.state.masks)
    assert same(plain.state.weights, strong.state.weights)


def test_a_weak_epsilon_gives_another_mask_of_the_same_size():
    plain, weak = (played(tiny(**VOTES, **more)) for more in ({}, {"response": 0.5}))
    sizes = [sum(int(m.sum()) for m in r.state.masks.values()) for r in (plain, weak)]
    assert abs(sizes[0] - sizes[1]) <= 64  # of the last row to go
    assert any((plain.state.masks[n] != m).any() for n, m in weak.state.masks.items())
    assert all("agreement" not in r or r["agreement"] is None for r in weak.rows)


def test_the_server_ranks_by_debiased_counts_of_votes_booked_by_their_budget():
    config = tiny(**VOTES, response=20.0)
    host = house_of(config)
    question = asked(host)
    release = response_release(("votes",), question, config)
    assert (release.mechanism, release.unit) == ("randomised-response", "client")
    assert release.pure * release.coordinates == pytest.approx(20.0)
    assert release.reason.startswith("each bit of a vote is flipped with probability ")
    model = first_state(host.model, host.layout).model
    plan = Plan(config, host.layout, (0, 0))
    form = form_of(question, config, host.layout)
    aggregate = Aggregate(
        votes=torch.arange(form.voters) % 4, answered=(0, 1, 2), totals={"count": 1.0}
    )
    scores = scored(aggregate, evidence_of(model, Round(0, plan), ()), plan)
    units = vote_units_of(config, host.layout, model.masks).units
    right = debiased(aggregate.votes, 3, flip_probability(20.0, units))
    assert torch.allclose(gathered(scores, {}), right)


def test_what_is_told_first_warns_of_coins():
    host = house_of(tiny(**VOTES))
    assert vote_words(tiny(**VOTES), host.layout) == ()
    (line,) = vote_words(tiny(**VOTES, response=500.0), host.layout)
    assert line.startswith("epsilon 500 over ")
    first, warning = vote_words(tiny(**VOTES, response=1.0), host.layout)
    assert "(chance 3" in first
    assert warning.startswith("votes are close to coins (p > 0.45)")
