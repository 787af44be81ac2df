import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve

from fedprune.attacks.roc import auc, found_at, interval, roc


def statistics(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(seed)
    members, others = drawn.normal(0.4, 1.0, 230), drawn.normal(0.0, 1.0, 310)
    return (members.round(1), others.round(1)) if ties else (members, others)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_curve_and_its_area_are_those_of_scikit_learn(seed, ties):
    members, others = statistics(seed, ties)
    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    both = np.r_[members, others]
    false, true, _ = roc_curve(truth, both, drop_intermediate=False)
    np.testing.assert_allclose(roc(members, others), (false, true), atol=1e-15)
    assert auc(members, others) == pytest.approx(roc_auc_score(truth, both), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (3, 7), (1, 1000), (42, 899)])
def test_the_interval_is_that_of_scipy(successes, trials):
    wanted = binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert interval(successes, trials) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_a_threshold_that_accuses_too_many_others_is_not_taken():
    members = np.array([9.0, 7.0, 5.0, 3.0])
    others = np.array([8.0, 6.0, 4.0, 2.0])
    assert (found_at(members, others, 0.0).true, found_at(members, others, 0.24).true) == (1, 1)
    quarter = found_at(members, others, 0.25)
    assert (quarter.true, quarter.false, quarter.share) == (2, 1, 0.5)
    assert quarter.low < quarter.share < quarter.high
    assert found_at(members, others, 1.0).true == 4


def test_equal_statistics_are_accused_together():
    same = np.ones(10)
    nobody = found_at(same, same, 0.5)
    assert (nobody.true, nobody.false, nobody.low) == (0, 0, 0.0)
    assert auc(same, same) == 0.5
    # 0.07 · 100 lies just above 7, 0.29 · 100 just below 29.
    others = np.arange(100.0)
    assert found_at(others, others, 0.29).false == 29
    assert found_at(others, others, 0.07).false == 7


@pytest.mark.parametrize(
    ("members", "others", "words"),
    [([], [1.0], "0 members"), ([1.0], [], "0 others"), ([np.nan], [1.0], "NaN in 1 places")],
)
def test_what_cannot_be_compared_is_refused(members, others, words):
    with pytest.raises(ValueError, match=words):
        roc(np.array(members), np.array(others))
    with pytest.raises(ValueError, match="3 of 2"):
        interval(3, 2)
