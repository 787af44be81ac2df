import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from fedprune.attacks.membership import FEW_SHADOWS, confidences, each_in_turn, lira
from fedprune.attacks.roc import auc
from fedprune.tasks.catalog import TASKS


class Logits(nn.Module):
    """Says what it was given."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_the_confidence_of_a_classifier_is_the_logit_of_the_right_class():
    logits = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(40) % 10
    part = {"images": logits, "labels": labels}
    p = logits.double().softmax(1)[torch.arange(40), labels].numpy()
    found = confidences(Logits(), TASKS["digits"], part, size=7)
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-12, atol=1e-12)


def test_a_model_that_is_sure_to_the_last_bit_still_has_an_order():
    logits = torch.tensor([[200.0, 0.0], [300.0, 0.0], [0.0, 200.0]])
    part = {"images": logits, "labels": torch.zeros(3, dtype=torch.long)}
    assert confidences(Logits(), TASKS["digits"], part).tolist() == [200.0, 300.0, -200.0]


def test_the_confidence_of_a_text_is_its_mean_log_probability(llama):
    host, _ = llama
    part = {n: t[:5].clone() for n, t in host.shards[0].train.items()}
    part["labels"][0, 3:] = -100  # fewer labels count
    found = confidences(host.model, host.task, part, size=2)
    for i in range(5):
        row = {n: t[i : i + 1] for n, t in part.items()}
        with torch.no_grad():
            loss = host.task.loss(host.model, row)
        assert found[i] == pytest.approx(-float(loss.total) / loss.count, rel=1e-5)


def drawn(models: int, examples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gen = np.random.default_rng(seed)
    inside = gen.random((models, examples)).argsort(0) < models // 2  # each in one half of them
    hardness = gen.normal(0.0, 4.0, examples)
    return hardness + gen.normal(size=(models, examples)), inside, hardness


@pytest.mark.parametrize("models", [10, FEW_SHADOWS])
def test_the_statistic_orders_examples_as_the_test_of_the_paper(models):
    shadows, inside, _ = drawn(models, 60, 1)
    observed = np.random.default_rng(2).normal(0.0, 3.0, 60)
    found = lira(observed, shadows, inside)
    for i in range(60):
        out = shadows[~inside[:, i], i]
        if models < FEW_SHADOWS:
            groups = [shadows[~inside[:, j], j] for j in range(60)]
            spread = sum(((g - g.mean()) ** 2).sum() for g in groups)
            sd = math.sqrt(spread / sum(len(g) - 1 for g in groups))
        else:
            sd = out.std(ddof=1)
        assert norm.cdf(found[i]) == pytest.approx(
            1 - norm.sf(observed[i], out.mean(), sd), abs=1e-12
        )


def test_shadows_that_were_trained_on_an_example_are_not_looked_at():
    shadows, inside, _ = drawn(12, 30, 4)
    observed = np.zeros(30)
    spoilt = np.where(inside, 1e9, shadows)
    np.testing.assert_array_equal(lira(observed, shadows, inside), lira(observed, spoilt, inside))
    # An example without two shadows outside has no statistic.
    inside = np.array([[True, False], [True, False], [False, False]])
    found = lira(np.zeros(2), np.arange(6.0).reshape(3, 2), inside)
    assert np.isnan(found).tolist() == [True, False]


def test_members_are_found_although_examples_differ_more_than_membership_does():
    confidence, inside, _ = drawn(12, 2000, 5)
    assert auc(*each_in_turn(confidence, inside)) == pytest.approx(0.5, abs=0.01), "no difference"
    confidence = confidence + 1.5 * inside
    members, others = each_in_turn(confidence, inside)
    assert len(members) + len(others) == 12 * 2000
    wanted = norm.cdf(1.5 / math.sqrt((1 + 1 / 6) + (1 + 1 / 5)))
    assert auc(members, others) == pytest.approx(wanted, abs=0.01)
    plain = auc(confidence[inside], confidence[~inside])
    assert plain < 0.62 < 0.8 < auc(members, others)
