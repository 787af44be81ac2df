import math

import pytest
import torch

import fedprune
from fedprune import federate
from fedprune.config import configure
from fedprune.tasks import regression
from fedprune.tasks.catalog import TASKS
from fedprune.tasks.regression import mean_alone, scaling_of
from fedprune.tasks.rescaling import Rescale, folded, rescaled, unfolded
from tests.tasks.rows import ROWS

TASK = TASKS["text-regression"]
TINY = {
    **{"task": "text-regression", "engine": "inline", "clients": 3, "cohort": 3, "hosts": 1},
    **{"rounds": 2, "warmup": 0, "end": 2, "local_steps": 2, "length": 12, "sparsity": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_a_model_speaks_in_units_of_the_labels_in_every_form(model, rows_file, tmp_path):
    transformers = pytest.importorskip("transformers")
    keys = {"data": str(rows_file), "label_column": "value", "depth": 1, "width": 16}
    config = configure({**TINY, **keys, "model": model})
    result = federate(config, folder=tmp_path / "run")
    pieces = TASK.shards(config)
    ids = torch.cat([s.test["inputs"] for s in pieces])
    attention = torch.cat([s.test["attention"] for s in pieces])
    known = scaling_of([row["value"] for row in ROWS])
    labels = torch.cat([s.test["labels"] for s in pieces]).double() * known.spread + known.centre
    assert {round(float(y), 2) for y in labels} <= {row["value"] for row in ROWS}

    auto = transformers.AutoModelForSequenceClassification
    forms = [result.model, *(fedprune.load(tmp_path / f) for f in ("run", "run/model"))]
    forms.append(auto.from_pretrained(tmp_path / "run/model").eval())
    said = [m(input_ids=ids, attention_mask=attention).logits[:, 0].double() for m in forms]
    for other in said[1:]:
        torch.testing.assert_close(other, said[0], rtol=1e-6, atol=1e-3)
    sklearn = pytest.importorskip("sklearn.metrics")
    final, guess = result.summary["quality"]["final"], said[0].detach()
    assert final["rmse"] == pytest.approx(sklearn.root_mean_squared_error(labels, guess), rel=1e-4)
    assert final["mae"] == pytest.approx(sklearn.mean_absolute_error(labels, guess), rel=1e-4)
    assert final["r2"] == pytest.approx(sklearn.r2_score(labels, guess), rel=1e-4, abs=1e-4)
    assert not {"accuracy", "perplexity"} & {*final, *result.rows[0]}
    train = torch.cat([s.train["labels"] for s in pieces]).double() * known.spread + known.centre
    alone = torch.full_like(labels, float(train.mean()))
    naive = result.summary["naive"]
    assert naive["rmse"] == pytest.approx(sklearn.root_mean_squared_error(labels, alone), rel=1e-5)
    assert naive["r2"] == pytest.approx(sklearn.r2_score(labels, alone), abs=1e-4)


def test_the_mean_alone_by_hand():
    found = mean_alone(torch.tensor([2.0, 2.0, 4.0]), torch.tensor([2.0, 2.0, 4.0]), 10.0)
    assert found == pytest.approx({"loss": 1.0, "mse": 100.0, "rmse": 10.0, "r2": 0.0})
    assert mean_alone(torch.ones(3), torch.zeros(3), 1.0) == {}


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([1.0, 1.0], "every row has the same label"),
        ([1e9] * 5, "every row has the same label"),
        ([1e9, 1e9 + 1], "less their mean"),
        ([1.0, 1e300], "too large for float32"),
        ([1e-40, 2e-40], "too little for float32"),
    ],
)
def test_labels_that_are_the_same_or_that_float32_cannot_say_are_refused(labels, reason):
    with pytest.raises(ValueError, match=reason):
        scaling_of(labels)


def test_any_size_of_label_is_standardised():
    for factor in (1e-6, 1.0, 1e12):
        known = scaling_of([factor * y for y in (1.0, 2.0, 3.0)])
        assert known.centre == pytest.approx(2 * factor)
        assert known.spread == pytest.approx(math.sqrt(2 / 3) * factor)


def test_a_label_that_is_no_number_is_named_with_its_row(tmp_path, asked):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "a,1.5\n" * 20 + "b,many\n")
    with pytest.raises(ValueError, match="label-column='label': row 21: 'many' is not a number"):
        regression.valued_shards(asked("text-regression", data=str(path), length=8))


def test_heads_are_folded_only_where_there_is_something_to_fold():
    plain = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    assert folded(plain) is plain
    wrapped = rescaled(plain, "1", regression.Scaling(7.0, 3.0))
    x = torch.randn(5, 2)
    torch.testing.assert_close(folded(wrapped)(x), wrapped(x))
    back = rescaled(folded(wrapped), "1", regression.Scaling(-2.0, 0.5))
    torch.testing.assert_close(unfolded(back, "1")(x), wrapped(x))
    assert not any(isinstance(m, Rescale) for m in folded(wrapped).modules())
