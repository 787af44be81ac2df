"""Scores whose clients remember something: what counts, where it is, and what never leaves."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from fedprune import federate
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.flower.grid import grid_port
from fedprune.engines.inline import inline_port
from fedprune.options.refusal import ConfigError
from tests.runs import Killed, Spy, killed_after
from tests.server.grids import in_one_process, workers

PLUGIN = str(Path(__file__).with_name("remembering.py"))
KEYS = {"task": "digits", "engine": "inline", "model": "mlp", "clients": 5, "cohort": 4, "hosts": 3}
KEYS |= {"rounds": 6, "warmup": 0, "end": 6, "local_steps": 1, "batch_size": 8, "seed": 4}
KEYS |= {"plugin": PLUGIN, "score": "times", "schedule": "linear", "min_clients": 2}


def lost(question, partition: int) -> bool:
    """Client 1 never in round 2; nobody tunes in round 3, which is void; nobody scores in 4."""
    if question.kind == "tune":
        return question.round == 3
    if question.kind != "score":
        return False
    few = question.round == 4 and question.ask == 1 and partition > 0
    return few or (question.round, partition) == (2, 1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("asked", [True, False], ids=["lost on the way", "never asked"])
@pytest.mark.parametrize("nodes", [0, 2])
def test_what_is_remembered_is_what_counted(asked, nodes):
    """Against a count of what counted; answers that are lost, rounds that are void, do not."""
    config = configure(KEYS)
    with in_one_process():
        port = grid_port(workers(nodes), config) if nodes else inline_port(build_host(config))
        eye = Spy(port, lost)

        def ask(question, partitions):
            if asked and any(lost(question, p) for p in partitions):
                port.ask(question, partitions)  # they answer, and keep something
            return eye.port.ask(question, partitions)

        result = federate(config, type(port)(**{**vars(port), "ask": ask}))
    counts, pending = Counter(), {}
    answered = {row["round"]: row["answered"] for row in result.rows}
    seen = 0
    for question, _, aggregate in eye.asked:
        if question.kind != "score":
            continue
        if question.ask == 0:
            pending = {}
        told = sum(counts[p] + (question.ask == 1) for p in aggregate.answered)
        assert aggregate.total is None or set(aggregate.total.tolist()) == {told}
        seen += aggregate.total is not None
        if question.ask == 1:
            pending = dict.fromkeys(aggregate.answered, 1)
            enough = len(aggregate.answered) >= config.min_clients
            if enough and answered[question.round] >= config.min_clients:
                counts.update(pending)
    assert seen > 8
    assert [row["round"] for row in result.rows if row["answered"] == 0] == [3]
    assert 0 < counts[1] < max(counts.values()) <= 4


@pytest.mark.slow
def test_a_run_whose_memory_is_gone_says_so(tmp_path):
    config = configure({**KEYS, "score": "moving"})
    with pytest.raises(Killed):
        federate(config, folder=tmp_path, watch=killed_after(2))
    shutil.rmtree(tmp_path / "remembered" / "score%20moving" / "2")
    resumed = federate(config, folder=tmp_path, resume=True)
    failures = [f for row in resumed.rows for f in row["failures"]]
    assert {(f["partition"], f["phase"]) for f in failures} == {(2, "score")}
    assert "what was kept in round 2 is not in" in failures[0]["reason"]


@pytest.mark.parametrize("score", ["early", "silent"])
def test_only_the_last_ask_of_a_score_that_says_so_keeps_something(score):
    with pytest.raises(ConfigError, match=r"only in the last ask of a score that has remembers"):
        federate(configure({**KEYS, "score": score}))
