"""Whom a score is asked of, on which examples, and how much each client counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedprune.config.planned import planned
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from tests.played import play
from tests.runs import overheard, tiny

Asked = Callable[..., list[tuple[Question, list[int], Aggregate]]]


@pytest.fixture(scope="module")
def asked() -> Asked:
    """The score questions of a run of two rounds that prunes in both."""

    def run(**keys: Any) -> list[tuple[Question, list[int], Aggregate]]:
        config = tiny(**{"model": "mlp", "rounds": 2, "warmup": 0, "end": 2, **keys})
        return [found for found in overheard(config)[1] if found[0].kind == "score"]

    return run


@pytest.mark.slow
def test_everyone_is_asked(asked):
    assert [who for _, who, _ in asked(score_cohort="all")] == [[0, 1, 2, 3, 4]] * 2
    assert [len(who) for _, who, _ in asked()] == [3, 3]


@pytest.mark.slow
def test_so_many_are_drawn_anew_in_every_round(asked):
    """Of everyone who trains, more than a cohort or fewer; again the same by the same seed."""
    found = [who for _, who, _ in asked(score_cohort=4, rounds=6, end=6, schedule="linear")]
    assert [len(who) for who in found] == [4] * 6
    assert len({tuple(who) for who in found}) > 1
    assert found == [who for _, who, _ in asked(score_cohort=4, rounds=6, end=6, schedule="linear")]


@pytest.mark.slow
def test_in_a_secure_sum_too(asked):
    """Of more than a cohort at once, to the same scores but for its fixed point."""
    keys = {"score_cohort": 4, "rounds": 1, "end": 1}
    ((_, those, open_),) = asked(**keys)
    ((_, who, sealed),) = asked(**keys, secure="secagg")
    assert who == those == list(sealed.answered)
    assert len(who) == 4
    assert torch.allclose(open_.total, sealed.total, atol=1e-3 * float(open_.total.abs().max()))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("combine", ["sum", "votes"])
def test_noise_is_booked_for_everyone(combine):
    """As planned, without what being drawn by chance would save."""
    keys = {"model": "mlp", "dp": "client", "dp_noise": 2.0, "combine": combine}
    config = tiny(**keys, score_cohort="all")
    play(config)
    scores = [o for o, (r,) in planned(config) if r.quantity == "scores"]
    assert {(o.audience, o.partitions) for o in scores} == {("everyone", (0, 1, 2, 3, 4))}
    tuned = [o for o, (r,) in planned(config) if r.quantity == "changes"]
    assert {o.audience for o in tuned} == {"cohort"}


@pytest.mark.slow
def test_examples_are_drawn_anew_in_every_round_and_are_those_that_count(asked):
    first, second = asked(score_examples=4, schedule="linear")
    assert first[2].totals["count"] == second[2].totals["count"] == 3 * 4
    whole = asked()[0][2].totals["count"]
    assert whole > 12
    assert asked(score_examples=10_000)[0][2].totals["count"] == whole


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("keys", "scores"),
    [
        ({}, None),
        ({"weighting": "equal"}, 3.0),
        ({"score_weighting": "equal"}, 3.0),
        ({"weighting": "equal", "score_weighting": "labels"}, None),
    ],
)
def test_a_mean_of_scores_weighs_clients(keys, scores, asked):
    """As means of changes do, unless it is said."""
    aggregate = asked(combine="mean", **keys)[0][2]
    assert aggregate.weight == (scores or aggregate.totals["count"])


@pytest.mark.slow
def test_what_a_client_drew_counts_as_much_as_all_it_has(asked):
    """The weight of its own score is its number of labels, not of those it was scored on."""
    some, whole = asked(combine="mean", score_examples=4)[0][2], asked(combine="mean")[0][2]
    assert some.weight == whole.weight > some.totals["count"]
