import math
from collections import Counter
from functools import cache
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.tasks.losses import class_loss
from fedprune.tasks.measures import METRICS, beside, macro_f1, measures, metric_of, shown_columns
from fedprune.tasks.metrics import baseline_of, label_counts, longest_common, rouge_l
from fedprune.tasks.regression import value_sums

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(LABELS, st.integers(1, 39))
def test_macro_f1_of_added_sums_is_scikit_learns(pairs, cut):
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, guesses = (list(x) for x in zip(*pairs, strict=True))
    totals = Counter[str]()
    for piece in filter(None, (pairs[:cut], pairs[cut:])):  # two clients
        logits = torch.nn.functional.one_hot(torch.tensor([g for _, g in piece]), 5).float()
        loss = class_loss(logits, torch.tensor([k for k, _ in piece]))
        totals.update(loss=float(loss.total), correct=loss.correct, count=loss.count, **loss.extra)
    found = measures(dict(totals), "accuracy")
    expected = sklearn.f1_score(labels, guesses, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(expected)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, guesses))


def test_measures_are_quotients_of_sums():
    totals = {"loss": 20.0, "count": 10.0, "correct": 4.0, "bytes": 16.0}
    copied = {"copied_exact": 0.0, "copied_rouge_l": 1.5}
    exam = {"exact": 3.0, "rouge_l": 4.5, "examined": 6.0, **copied}
    found = measures({**totals, **exam}, "perplexity")
    assert found == pytest.approx(
        {
            "loss": 2.0,
            "perplexity": math.e**2,
            "accuracy": 0.4,
            "bits_per_byte": 20 / math.log(2) / 16,
            "exact_match": 0.5,
            "rouge_l": 0.75,
            "exact_match_of_copying": 0.0,
            "rouge_l_of_copying": 0.25,
        }
    )


@pytest.mark.parametrize("metric", METRICS)
def test_a_perplexity_is_of_likelihoods_only_an_accuracy_where_labels_are_right(metric):
    found = measures({"loss": 1.0, "count": 2.0, "correct": 1.0}, metric)
    about = METRICS[metric]
    assert ("perplexity" in found) == (metric in ("perplexity", "bits_per_byte"))
    assert ("accuracy" in found) == (about.correct == "accuracy")
    assert ("perplexity" in shown_columns(metric)) == about.likelihood
    assert set(shown_columns(metric)) <= {*found, metric}
    # What needs no sums of its own can be had from a loss alone.
    assert (metric in found) == (not about.sums)
    assert not {"loss", "count", metric, "perplexity"} & set(beside(found, metric))


def test_a_metric_that_is_not_known_is_better_the_lower():
    assert not metric_of("auc").higher
    assert shown_columns("auc") == ("loss", "auc")


VALUES = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=3, max_size=30)


@given(VALUES, st.integers(1, 29), st.floats(0.01, 1e5))
def test_errors_of_values_are_scikit_learns(pairs, cut, scale):
    sklearn = pytest.importorskip("sklearn.metrics")
    totals = Counter[str](loss=0, correct=0)
    for piece in filter(None, (pairs[:cut], pairs[cut:])):  # two clients
        guess, label = (torch.tensor(x, dtype=torch.float64) for x in zip(*piece, strict=True))
        totals.update(count=len(piece), **value_sums(guess, label))
    assert all(value >= 0 for value in totals.values())
    found = measures(dict(totals), "mse", scale)
    guess, label = (scale * torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
    assert found["mse"] == pytest.approx(sklearn.mean_squared_error(label, guess))
    assert found["rmse"] == pytest.approx(sklearn.root_mean_squared_error(label, guess))
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(label, guess))
    if min(label.std(), guess.std()) > 1e-2 * scale:
        assert found["r2"] == pytest.approx(sklearn.r2_score(label, guess), rel=1e-6, abs=1e-6)
        expected = torch.corrcoef(torch.stack([label, guess]))[0, 1]
        assert found["pearson"] == pytest.approx(float(expected), abs=1e-6)
    assert "accuracy" not in found


def test_a_squared_error_is_the_loss_where_there_is_no_sum_of_it():
    totals = {"loss": 8.0, "count": 2.0, "correct": 0.0}
    assert measures(totals, "mse") == {"loss": 4.0, "mse": 4.0, "rmse": 2.0}
    assert measures(totals, "rmse") == measures(totals, "mse")
    assert measures(totals, "mae") == {"loss": 4.0, "mae": 4.0}


def test_nothing_counted_is_not_a_number_and_too_much_is_infinite():
    empty = measures({"loss": 0.0, "count": 0.0, "correct": 0.0, "bytes": 0.0}, "perplexity")
    assert all(math.isnan(v) for v in empty.values())
    assert math.isnan(macro_f1([0.0], [0.0], [0.0]))
    huge = {"loss": 1e6, "count": 1.0, "correct": 0.0}
    assert measures(huge, "perplexity")["perplexity"] == math.inf


def test_labels_are_counted_without_those_left_out():
    part = {"labels": torch.tensor([[0, 2, -100], [2, 2, 1]])}
    counts = label_counts(part, 5)
    assert counts.tolist() == [1.0, 1.0, 3.0, 0.0, 0.0]
    assert counts.dtype == torch.float64
    assert label_counts({"labels": torch.tensor([-100])}, 2).tolist() == [0.0, 0.0]
    for odd in (2, -1):
        with pytest.raises(ValueError, match="not a class; allowed: 0 to 1"):
            label_counts({"labels": torch.tensor([0, odd])}, 2)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=6))
def test_the_majority_class_is_scored_as_scikit_learn_would(counts):
    sklearn = pytest.importorskip("sklearn.metrics")
    train, test = (torch.tensor(x, dtype=torch.float64) for x in zip(*counts, strict=True))
    labels = [c for c, n in enumerate(test.tolist()) for _ in range(int(n))]
    found = baseline_of("accuracy", train, test)
    if not labels:
        assert math.isnan(found["accuracy"])
        return
    guesses = [int(train.argmax())] * len(labels)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, guesses))
    expected = sklearn.f1_score(labels, guesses, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(expected)


def test_the_unigram_is_counted_by_hand():
    train, test = torch.tensor([3.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 2.0])
    found = baseline_of("perplexity", train, test)
    product = (4 / 11) * (1 / 11) * (6 / 11) ** 2  # one added to each of three counts
    assert found["perplexity"] == pytest.approx(product ** (-1 / 4))
    assert found["accuracy"] == 0.5


WORDS = st.lists(st.sampled_from("abcd"), max_size=7)


def common_by_force(left: list[str], right: list[str]) -> int:
    """The longest subsequence of one that is one of the other, among all there are."""

    @cache
    def inside(some: tuple[str, ...]) -> bool:
        rest = iter(right)
        return all(word in rest for word in some)

    sizes = range(len(left), -1, -1)
    return next(n for n in sizes if any(map(inside, combinations(left, n))))


@pytest.mark.slow
@given(WORDS, WORDS)
def test_the_longest_common_subsequence_is_the_longest(left, right):
    expected = common_by_force(left, right)
    assert longest_common(left, right) == longest_common(right, left) == expected


@given(WORDS, WORDS)
def test_rouge_l_is_the_f1_of_precision_and_recall(left, right):
    common = common_by_force(left, right)
    found = rouge_l(" ".join(left), "  ".join(right))
    if not common:
        assert found == float(not left and not right)
        return
    precision, recall = common / len(left), common / len(right)
    assert found == pytest.approx(2 * precision * recall / (precision + recall))


def test_rouge_l_reads_capitals_and_punctuation():
    assert rouge_l("police killed the gunman", "police kill the gunman") == 0.75  # Lin 2004
    assert rouge_l("the gunman kill police", "police kill the gunman") == 0.5
    assert rouge_l("Who's there?", "Who's there?") == 1.0
    assert rouge_l("whos there", "Who's there?") == 0.0
