from dataclasses import replace
from typing import Any

import pytest
import torch

from fedprune.client.host import Host, build_host
from fedprune.config import configure
from fedprune.options.refusal import Refused
from fedprune.protocol.client_privacy import defended, leaving, silenced
from fedprune.protocol.failures import Failure
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.server.state import first_state

DIGITS = {"task": "digits", "model": "mlp", "clients": 4, "cohort": 4, "engine": "inline"}
PRIVATE = {"dp": "client", "dp_noise": 1.0}


def config_of(**keys: Any) -> Any:
    return configure({**DIGITS, **keys})


def house_of(**keys: Any) -> Host:
    return build_host(config_of(**keys))


def question(kind: str, **what: Any) -> Question:
    return Question(kind, 1, {}, {}, **what)


def given(*values: float, **more: Any) -> Answer:
    return Answer(torch.tensor(values), 7.0, {"loss": 14.0, "count": 7.0}, **more)


def test_without_privacy_the_answer_is_the_same_object_but_for_nothing():
    answer = given(3.0, 4.0)
    left = leaving(answer, question("tune"), config_of())
    assert left == answer
    assert left.values is answer.values


def test_a_change_is_clipped_and_tells_neither_size_nor_loss():
    left = leaving(given(3.0, 4.0), question("tune"), config_of(**PRIVATE, dp_clip=1.0))
    assert torch.allclose(left.values, torch.tensor([0.6, 0.8]))
    assert (left.weight, left.totals) == (1.0, {})
    small = leaving(given(0.3, 0.4), question("tune"), config_of(**PRIVATE, dp_clip=1.0))
    assert torch.equal(small.values, torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize("kind", ["score", "inputs"])
def test_statistics_have_norm_one_or_at_most_the_clip(kind):
    asked = question(kind, score="taylor")
    by_default = leaving(given(3e-9, 4e-9), asked, config_of(**PRIVATE))
    assert torch.allclose(by_default.values, torch.tensor([0.6, 0.8]))
    bounded = leaving(given(3.0, 4.0), asked, config_of(**PRIVATE, dp_score_clip=2.5))
    assert torch.allclose(bounded.values, torch.tensor([1.5, 2.0]))
    less = leaving(given(0.3, 0.4), asked, config_of(**PRIVATE, dp_score_clip=2.5))
    assert torch.equal(less.values, torch.tensor([0.3, 0.4]))


def test_metrics_become_bounded_means_without_a_count():
    answer = Answer(torch.empty(0), 1.0, {"loss": 30.0, "correct": 4.0, "count": 10.0})
    left = leaving(answer, question("evaluate"), config_of(**PRIVATE))
    assert left.totals == pytest.approx({"correct": 0.4, "loss": 3.0})
    lost = replace(answer, totals={"loss": 1e30, "correct": 4.0, "count": 10.0})
    size = leaving(lost, question("evaluate"), config_of(**PRIVATE, dp_metric_clip=5.0)).totals
    assert sum(v * v for v in size.values()) ** 0.5 <= 5.0 * (1 + 1e-6)
    nobody = replace(answer, totals={"loss": 0.0, "correct": 0.0, "count": 0.0})
    assert set(leaving(nobody, question("evaluate"), config_of(**PRIVATE)).totals.values()) == {0.0}
    panel = config_of(**PRIVATE, panel=1, cohort=3)
    # Its tensors are the same objects: from Python 3.13 on == would compare them number by number.
    assert vars(leaving(answer, question("evaluate"), panel)) == vars(answer)


def test_a_place_in_a_histogram_of_clients_stays_one_within_the_norm():
    totals = {"loss": 30.0, "correct": 4.0, "count": 10.0, "clients_in_0": 0.0, "clients_in_7": 1.0}
    answer, c = Answer(torch.empty(0), 1.0, totals), config_of(**PRIVATE, dp_metric_clip=2.0)
    left = leaving(answer, question("evaluate"), config_of(**PRIVATE)).totals
    told = {"loss": 3.0, "correct": 0.4, "clients_in_0": 0.0, "clients_in_7": 1.0}
    assert left == pytest.approx(told)
    lost = replace(answer, totals=totals | {"loss": float("inf")})
    for one in (answer, lost):
        left = leaving(one, question("evaluate"), c).totals
        assert (left["clients_in_0"], left["clients_in_7"]) == (0.0, 1.0)
        assert sum(v * v for v in left.values()) ** 0.5 == pytest.approx(2.0)


def test_a_client_cannot_vote_for_more_than_a_mask_may_keep():
    c = config_of(**PRIVATE, combine="votes")
    votes = torch.tensor([True, True, False])
    answer = Answer(torch.empty(0), 7.0, {"count": 7.0}, votes)
    assert leaving(answer, question("score", score="taylor"), c, most=2).votes is votes
    with pytest.raises(Refused, match="2 kept, 1 may be"):
        leaving(answer, question("score", score="taylor"), c, most=1)


def test_what_is_not_finite_counts_as_nothing():
    """To refuse it would tell that it is there."""
    for value in (float("nan"), float("inf")):
        left = leaving(given(0.5, value), question("tune"), config_of(**PRIVATE))
        assert torch.equal(left.values, torch.tensor([0.5, 0.0]))


def test_equal_weights_are_an_option_of_their_own():
    assert leaving(given(1.0), question("tune"), config_of(weighting="equal")).weight == 1.0
    assert leaving(given(1.0), question("tune"), config_of()).weight == 7.0


def test_a_defence_keeps_the_largest_changes_back():
    values = torch.tensor([0.1, -9.0, 0.2, 3.0])
    assert torch.equal(defended(values, 0.5), torch.tensor([0.1, 0.0, 0.2, 0.0]))
    assert torch.equal(defended(values, 0.01), torch.tensor([0.1, 0.0, 0.2, 3.0]))
    assert torch.equal(defended(values, 0.0), values)
    left = leaving(given(0.1, -9.0), question("tune"), config_of(defence=0.5))
    assert torch.equal(left.values, torch.tensor([0.1, 0.0]))
    scored = leaving(given(0.1, -9.0), question("score"), config_of(defence=0.5))
    assert torch.equal(scored.values, torch.tensor([0.1, -9.0]))


def test_a_failure_says_nothing_of_private_data():
    failure = Failure(3, "tune", "layer", "ValueError: row 17 says 'HIV'")
    assert silenced(failure, config_of()) == failure
    assert silenced(failure, config_of(**PRIVATE)) == Failure(3, "tune", "", "failed")


@pytest.mark.parametrize("kind", ["score", "tune", "evaluate"])
def test_both_sides_know_which_totals_stay_away(kind):
    for keys in ({}, PRIVATE, {**PRIVATE, "panel": 1, "cohort": 3}):
        host = house_of(**keys)
        state = first_state(host.model, host.layout)
        what = {"score": "taylor"} if kind == "score" else {"part": "test"}
        asked = Question(kind, 1, state.weights, state.masks, **what)
        totals = {"loss": 1.0, "correct": 1.0, "count": 1.0}
        form = form_of(asked, host.config, host.layout)
        left = leaving(Answer(torch.ones(2), 1.0, totals), asked, host.config)
        assert set(left.totals) <= form.totals | {"loss", "correct", "count"}
        if keys and not keys.get("panel") and kind == "evaluate":
            assert "count" not in form.totals
            assert form.totals - set(left.totals) == form.totals - {"loss", "correct"}
        if keys and kind != "evaluate":
            assert form.totals == frozenset()
