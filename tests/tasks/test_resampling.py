"""Intervals of what is measured, by a bootstrap over clients."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprune import federate
from fedprune.methods.measuring import with_intervals
from fedprune.options.refusal import Refused
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.checks import check_sum
from fedprune.protocol.form import Form
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Answer, Question
from fedprune.protocol.replies import folded_of, sum_packet
from fedprune.protocol.running_sum import as_sum, summed
from fedprune.report import sentences
from fedprune.report.intervals import interval_sentence
from fedprune.report.reading import read_run
from fedprune.report.tables import measured_columns, quality_table
from fedprune.tasks.measures import error_of_mean, spread_sums
from fedprune.tasks.resampling import intervals
from tests.runs import house_of, tiny


def clients(n):
    """Totals of so many clients, of unlike sizes, and the sums from which their error is told."""
    draw = np.random.default_rng(n)
    counts = draw.integers(5, 60, n)
    each = [
        {"loss": m * draw.gamma(4.0, 0.5), "correct": float(draw.binomial(m, 0.7)), "count": m}
        for m in map(float, counts)
    ]
    sums = [spread_sums(t["loss"], t["count"]) | t for t in each]
    return each, {name: sum(s[name] for s in sums) for name in sums[0]}


def pieces(each, hosts):
    """What hosts add up, each for every so many clients."""
    out = [Aggregate() for _ in range(hosts)]
    for p, totals in enumerate(each):
        answer = Answer(torch.empty(0), 1.0, totals)
        out[p % hosts] = as_sum(answer, p, 1, out[p % hosts], resamples=3)
    return out


def test_an_interval_over_many_clients_is_as_wide_as_the_ratio_estimator_s():
    each, sums = clients(300)
    totals = with_intervals(summed(pieces(each, 1)), tiny())
    low, high = intervals(totals)["loss"]
    middle, error = sums["loss"] / sums["count"], error_of_mean(sums, 10**9)
    assert (low + high) / 2 == pytest.approx(middle, abs=error / 2)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert set(intervals(totals)) == {"loss", "accuracy"}


def test_hosts_add_up_to_the_same_and_one_client_has_no_interval():
    each, _ = clients(20)
    one, many = (summed(pieces(each, hosts)) for hosts in (1, 4))
    torch.testing.assert_close(one.resampled, many.resampled, rtol=1e-12, atol=0)
    assert intervals(with_intervals(summed(pieces(each[:1], 1)), tiny())) == {}


def test_a_sum_that_travels_has_its_resamples_or_is_refused():
    (sent,) = pieces(clients(3)[0], 1)
    form = Form({}, {}, frozenset({"loss", "correct", "count"}), resampled=True)
    back = folded_of(sum_packet(sent), [0, 1, 2])
    check_sum(back, form)
    assert torch.equal(back.resampled, sent.resampled)
    for spoilt in (None, sent.resampled[1:], sent.resampled * torch.nan):
        with pytest.raises(Refused, match=r"wrong shape|NaN"):
            check_sum(replace(back, resampled=spoilt), form)
    with pytest.raises(Refused, match="expected 0"):
        check_sum(back, replace(form, resampled=False))


def test_a_run_says_intervals_in_its_summary_and_on_its_page(tmp_path):
    config = tiny(clients=6, baselines="dense", model="mlp", newcomers=2, rounds=3, end=3)
    federate(config, folder=tmp_path)
    told = json.loads((tmp_path / "summary.json").read_text())
    run = read_run(tmp_path)
    columns, shown = quality_table(run).columns, measured_columns(run)
    assert set(told["intervals"]) == {"dense_at_pruning", "final", "dense", "newcomers"}
    for name, each in told["intervals"].items():
        assert set(each) == set(told["quality"][name]) - {"count"}
        for measure, (low, high) in each.items():
            assert low < high
            assert measure != "loss" or low < told["quality"][name][measure] < high
    assert columns.count("95 % interval") == len(told["intervals"]["final"])
    assert "bootstrap" in interval_sentence(run, shown)
    old = replace(run, summary={k: v for k, v in told.items() if k != "intervals"})
    assert quality_table(old).columns.count("95 % interval") == 1
    assert "Wilson" in interval_sentence(old, shown)
    assert "The other figures have no interval" in interval_sentence(old, shown)


OPEN = {"dp": "example", "dp_noise": 1.0, "clients": 6, "cohort": 2}


@pytest.mark.parametrize(
    ("keys", "open_"),
    [
        ({}, True),
        ({"secure": "secagg"}, False),
        (OPEN, False),
        (OPEN | {"panel": 2}, True),  # who measures is not protected
        (OPEN | {"panel": 3, "cohort": 3, "secure": "secagg"}, False),
    ],
)
@pytest.mark.parametrize("part", ["validation", "test"])
def test_what_comes_in_the_open_on_test_is_resampled(keys, open_, part):
    question = Question("evaluate", 1, {}, {}, part=part)
    form = form_of(question, tiny(**keys), house_of(tiny()).layout)
    assert form.resampled == (open_ and part == "test")


@pytest.mark.parametrize(
    ("keys", "columns", "words"),
    [
        ({"secure": "secagg"}, 1, "which secure sums hide"),
        (OPEN | {"clip": 0.0}, 0, "Noise of standard deviation"),
        (OPEN | {"clip": 0.0, "panel": 3}, 3, "bootstrap"),
    ],
)
def test_no_quality_stands_without_an_interval_or_why_there_is_none(keys, columns, words, tmp_path):
    federate(tiny(model="mlp", rounds=2, warmup=1, end=2, **keys), folder=tmp_path)
    run = read_run(tmp_path)
    assert quality_table(run).columns.count("95 % interval") == columns
    assert words in sentences.tested_on(run)
    noised = "dp" in keys and "panel" not in keys
    assert ("each counted once" in sentences.tested_on(run)) == noised
    assert (", beside the dense" in sentences.result_sentence(run)) == noised
    assert ("3 more never train" in sentences.what_was_run(run)) == ("panel" in keys)
