"""More devices are asked than count: the first cohort does, and nobody waits for others."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Error, Message

from fedprune import Result, RunConfig, federate
from fedprune.engines.flower.grid import grid_port
from fedprune.options.refusal import ConfigError
from tests.runs import tiny

RUN = {"engine": "flower", "clients": 3, "cohort": 2, "over_select": 1.5, "min_clients": 2}
RUN |= {"rounds": 2, "warmup": 0, "end": 1}


def run_on(grid: Any, **changes: Any) -> tuple[Result, RunConfig]:
    config = tiny(**RUN | {"timeout": 60.0} | changes)
    return federate(config, grid_port(grid, config)), config


def silent(node: int, question: Message, reply: Message) -> Message | None:
    """Node 78, partition 1, takes long over what a cohort is asked."""
    return None if node == 78 and question.metadata.message_type[:5] == "train" else reply


@pytest.mark.slow
def test_the_first_cohort_of_answers_counts_and_a_slow_one_holds_nobody_up(devices):
    result, _ = run_on(devices(3, meddle=silent))
    assert [len(row["cohort"]) for row in result.rows] == [3, 3]
    assert {row["answered"] for row in result.rows} == {2}
    assert result.summary["failures"] == 0
    slow = "tune: enough others were faster than client 1"
    assert all(slow in row["notices"] for row in result.rows)
    others, _ = run_on(devices(3, meddle=silent), over_select=1.0, min_clients=1, timeout=9.0)
    assert others.summary["failures"] > 0


@pytest.mark.slow
def test_a_reply_that_comes_with_the_last_one_needed_is_paid_for_and_counts_nothing(devices):
    all_there, two = run_on(devices(3))[0], run_on(devices(3, meddle=silent))[0]
    assert {row["answered"] for row in all_there.rows} == {2}
    three, both = all_there.state.book.traffic.up, two.state.book.traffic.up
    assert 2 * three == pytest.approx(3 * both, rel=0.01)


def test_who_fails_has_failed_however_many_others_are_there(devices):
    def broken(node: int, question: Message, reply: Message) -> Message:
        trains = question.metadata.message_type == "train.tune"
        fails = node == 77 and trains  # the first one that a look at this grid finds
        return Message(Error(code=0, reason="broken"), reply_to=question) if fails else reply

    result, _ = run_on(devices(3, meddle=broken))
    assert {row["answered"] for row in result.rows} == {2}
    assert result.summary["failures"] == 2
    assert "tune:" not in str([row["notices"] for row in result.rows])


def test_workers_of_a_simulation_are_refused_before_anything_is_asked(workers):
    grid = workers(2)
    with pytest.raises(ConfigError, match=r"^over_select=1\.5: nodes are workers of a simulation"):
        run_on(grid)
    assert {kind for _, kind, *_ in grid.asked} == {"query.hello"}
