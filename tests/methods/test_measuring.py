"""After which rounds the model is measured, and by whom."""

import itertools
import math

import numpy as np
import pytest

from fedprune import Result, RunConfig
from fedprune.config.planned import planned
from fedprune.tasks.measures import error_of_mean, spread_sums
from tests.runs import overheard, played, same, tiny


def measured(config: RunConfig) -> tuple[Result, list[tuple[int, str, list[int]]]]:
    """A run, and who measured after which round on what."""
    result, asked, _ = overheard(config)
    return result, [(q.round, q.part, who) for q, who, _ in asked if q.kind == "evaluate"]


@pytest.mark.parametrize(("every", "rounds"), [(2, [2, 4, 5]), (5, [5])])
def test_the_model_is_measured_after_every_so_many_rounds_and_the_last(every, rounds):
    result, asked = measured(tiny(measure_every=every))
    assert [r for r, part, _ in asked if part == "validation"] == rounds
    assert [row["round"] for row in result.rows if row["loss"] is not None] == rounds
    whole = played(tiny())
    assert same(result.state.weights, whole.state.weights)
    known = [row["loss"] for row in whole.rows if row["round"] in rounds]
    assert [row["loss"] for row in result.rows if row["loss"] is not None] == known


@pytest.mark.slow
def test_some_who_are_drawn_stand_for_all_and_tests_ask_everyone():
    keys, there = {"clients": 8, "cohort": 2}, set(range(8))
    result, asked = measured(tiny(**keys, measure_cohort=3))
    drawn = [who for _, part, who in asked if part == "validation"]
    assert all(len(who) == 3 and set(who) <= there for who in drawn)
    assert len({tuple(who) for who in drawn}) > 1
    assert all(set(who) == there for _, part, who in asked if part == "test")
    assert measured(tiny(**keys, measure_cohort=3))[1] == asked, "by the seed"
    assert same(result.state.weights, played(tiny(**keys)).state.weights)
    assert all(row["measured_by"] == 3 and row["loss_error"] > 0 for row in result.rows)


def test_the_standard_error_is_what_means_over_samples_spread_by():
    """Over every sample of 6 of 12 clients, against the root of the mean square deviation."""
    gen = np.random.default_rng(0)
    count = gen.integers(20, 40, 12).astype(float)
    loss = count * gen.uniform(1, 3, 12)
    off, told = [], []
    for some in map(list, itertools.combinations(range(12), 6)):
        totals = {"loss": loss[some].sum(), "count": count[some].sum()}
        each = [spread_sums(loss[i], count[i]) for i in some]
        totals |= {name: sum(sums[name] for sums in each) for name in each[0]}
        off.append(totals["loss"] / totals["count"] - loss.sum() / count.sum())
        told.append(error_of_mean(totals, 12))
        e = loss[some] - count[some] * totals["loss"] / totals["count"]
        by_hand = math.sqrt(0.5 * (e @ e) / 5 / 6) / count[some].mean()
        assert told[-1] == pytest.approx(by_hand)
    rms = [np.sqrt(np.mean(np.square(x))) for x in (told, off)]
    assert rms[0] == pytest.approx(rms[1], 0.05)
    assert error_of_mean({"loss": 1.0, "count": 1.0, **spread_sums(1.0, 1.0)}, 9) is None


def test_noise_is_planned_for_the_rounds_that_measure():
    keys = {"model": "mlp", "dp": "client", "dp_noise": 2.0, "metrics": "noised"}
    plans = [planned(tiny(**keys, measure_every=n)) for n in (1, 5)]
    often, once = (sum(occasion.kind == "evaluate" for occasion, _ in plan) for plan in plans)
    assert often - once == 4
