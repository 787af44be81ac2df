"""Baselines are runs: each arm has the rows of a run with its options alone."""

import pytest

from fedprune import federate
from tests.runs import tiny


@pytest.mark.parametrize(
    ("arm", "alone"),
    [
        ("random", {"score": "random"}),
        ("magnitude", {"score": "magnitude"}),
        ("lottery", {"score": "magnitude", "rewind": 2}),
    ],
)
def test_an_arm_is_the_run_that_it_stands_for(arm, alone):
    keys = {"model": "mlp", "rounds": 5, "warmup": 2, "end": 4}
    beside = federate(tiny(baselines=(arm,), **keys))
    rows = [row["weights_digest"] for row in beside.rows if row["arm"] == arm]
    run = federate(tiny(**keys, **alone))
    assert rows == [row["weights_digest"] for row in run.rows]
    assert beside.summary["quality"][arm] == run.summary["quality"]["final"]
