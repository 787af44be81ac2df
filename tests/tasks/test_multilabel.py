from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.tasks import multilabel
from fedprune.tasks.measures import measures
from fedprune.tasks.multilabel import frequent_labels_alone, label_sets, labels_loss, read_labels

BITS = st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=20)


@given(BITS, st.integers(1, 19))
def test_f1_and_exact_match_of_added_sums_are_scikit_learns(rows, cut):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, guesses = (torch.tensor([row[at] for row in rows]) for at in (slice(3), slice(3, 6)))
    totals = Counter[str]()
    for piece in (slice(cut), slice(cut, None)):  # two clients
        loss = labels_loss(guesses[piece].float() - 0.5, labels[piece].float())
        assert float(loss.each.sum()) == pytest.approx(float(loss.total), abs=1e-5)
        totals.update(loss=float(loss.total), correct=loss.correct, count=loss.count, **loss.extra)
    found = measures(dict(totals), "micro_f1")
    assert found["exact_match"] == pytest.approx(metrics.accuracy_score(labels, guesses))
    for average in ("micro", "macro"):
        with torch.no_grad():
            wanted = metrics.f1_score(labels, guesses, average=average, zero_division=float("nan"))
        assert found[f"{average}_f1"] == pytest.approx(wanted, nan_ok=True)


@pytest.mark.filterwarnings("ignore")
def test_frequencies_alone_by_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    test = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]]).double()
    train = torch.tensor([10.0, 6.0, 3.0, 7.0]).double()  # examples, then with each label
    guess = torch.tensor([[1.0, 0.0, 1.0]]).repeat(4, 1)  # more than half have the first and last
    found = frequent_labels_alone(train, torch.cat([torch.tensor([4.0]), test.sum(0)]).double())
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(test, guess, average="micro"))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(test, guess, average="macro"))
    likely = ((train[1:] + 1) / 12).repeat(4, 1)
    wanted = torch.nn.functional.binary_cross_entropy(likely, test)
    assert found["loss"] == pytest.approx(float(wanted))
    assert frequent_labels_alone(train, torch.zeros(4)) == {}


@pytest.mark.parametrize(
    ("cells", "sets"),
    [
        (["b|a", "", " a "], [["a", "b"], [], ["a"]]),
        (["b;a", "a, c"], [["a", "b"], ["a, c"]]),  # the first separator that is there is the one
        (["a,b,a", "c"], [["a", "b"], ["c"]]),
        ([["b", "a"], []], [["a", "b"], []]),
        (['["x|y", "z"]', "[]"], [["x|y", "z"], []]),
        ([None, ["1", "01"]], [[], ["01", "1"]]),
    ],
)
def test_labels_are_read_from_lists_and_texts(cells, sets):
    assert label_sets([read_labels(cell) for cell in cells], "label-column='y'") == sets


def test_one_label_a_row_is_another_task():
    with pytest.raises(ValueError, match="every row has one label; allowed: --task text-class"):
        label_sets(["a", "b/c"], "label-column='y'")


def test_rows_without_a_label_stay(tmp_path, asked):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "a b,x|y\nb c,\nc d,y\n" * 8)
    config = asked("multi-label", data=str(path), length=8, clients=2)
    shards = multilabel._shards(config)
    rows = torch.cat([p["labels"] for s in shards for p in (s.train, s.validation, s.test)])
    assert sorted(map(tuple, rows.tolist())) == [(0, 0)] * 8 + [(0, 1)] * 8 + [(1, 1)] * 8
    named = asked("multi-label", data=str(path), length=8, clients=2, class_names=("x",))
    with pytest.raises(ValueError, match="rows have the label 'y'"):
        multilabel._shards(named)
