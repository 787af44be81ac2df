"""Tiny configurations, the hosts that serve them, and runs that are played once."""

import fcntl
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from fedprune import Result, RunConfig, Shard, federate
from fedprune.client.host import Host, build_host
from fedprune.config import configure, to_toml
from fedprune.engines.inline import inline_port
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.protocol.port import Port
from fedprune.report.board import Board
from fedprune.report.page import write_report
from fedprune.server.state import State
from fedprune.server.watch import Watch

TINY = {
    "task": "digits", "engine": "inline", "clients": 5, "cohort": 3, "hosts": 2, "alpha": 0.3,
    "rounds": 5, "warmup": 2, "end": 4, "local_steps": 2, "batch_size": 8, "sparsity": 0.7,
    "seed": 3,
}  # fmt: skip

_dealt: dict[tuple[Any, ...], Mapping[int, Shard]] = {}
_done: dict[str, Result] = {}

STUDY = """\
[base]
task = "digits"
model = "mlp"
clients = 3
rounds = 2
local-steps = 2
sparsity = 0.8
seed = 0
[grid]
score = ["magnitude", "taylor", "random"]
"""
"""The file of a study of three small runs."""


def tiny(**changes: Any) -> RunConfig:
    """A run of five rounds on five clients: two dense, two that prune, one that recovers.

    A key with None is left out.
    """
    keys = {**TINY, **changes}
    if keys["task"] != "digits" and "alpha" not in changes:
        del keys["alpha"]  # only its own default split has one
    return configure({key: value for key, value in keys.items() if value is not None})


def house_of(config: RunConfig) -> Host:
    """A host for a configuration; shards are dealt once per way of dealing them."""
    key = (config.task, config.plugin, config.clients, config.split, config.alpha, config.seed)
    host = build_host(config, _dealt.get(key))
    _dealt[key] = host.shards
    return host


def played(config: RunConfig) -> Result:
    """The result of a run in this process; a session of tests plays each configuration once."""
    key = to_toml(config)
    if key not in _done:
        _done[key] = _played_by_one(config, hashlib.sha256(key.encode()).hexdigest())
    return _done[key]


def _played_by_one(config: RunConfig, name: str) -> Result:
    """The run, by the first of the session's processes that wants it; the others read it.

    They share a folder of this session alone: no run outlives the source that played it.
    """
    if "PLAYED" not in os.environ:
        return federate(config, inline_port(house_of(config)))
    file = Path(os.environ["PLAYED"]) / name
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            result = federate(config, inline_port(house_of(config)))
            file.write_bytes(pickle.dumps(result))
            return result
    return pickle.loads(file.read_bytes())


class Killed(Exception):
    """Stands for the power cut."""


def killed_after(round_: int, arm: str = "pruned") -> Watch:
    """Ends a run right after the row of a round was kept."""

    def row(row: dict[str, Any], *_: Any) -> None:
        if (row["arm"], row["round"]) == (arm, round_):
            raise Killed

    return Watch(row=row)


def cut_short(config: RunConfig, folder: Path, round_: int, host: Host | None = None) -> None:
    """The folder of a run that was killed after a round."""
    port = inline_port(host or house_of(config))
    with pytest.raises(Killed):
        federate(config, port, folder=folder, watch=killed_after(round_))


OPEN = Board.open


@contextmanager
def with_pages() -> Iterator[None]:
    """Runs write their page and their board, which `tests.conftest` keeps them from."""
    board = patch("fedprune.report.board.Board.open", OPEN)
    with patch("fedprune.report.page.write_report", write_report), board:
        yield


class Spy:
    """A port that writes down every question, who was asked and what came back."""

    def __init__(self, port: Port, without: Callable[[Question, int], bool] | None = None) -> None:
        self.inner = port
        self.without = without or (lambda *_: False)
        self.asked: list[tuple[Question, list[int], Aggregate]] = []
        self.port = replace(port, ask=self._ask)

    def _ask(self, question: Question, partitions: Sequence[int]) -> Aggregate:
        there = [p for p in partitions if not self.without(question, p)]
        aggregate = self.inner.ask(question, there)
        kept = replace(
            aggregate, total=None if aggregate.total is None else aggregate.total.clone()
        )
        self.asked.append((question, list(partitions), kept))
        return aggregate


Asked = list[tuple[Question, list[int], Aggregate]]
"""Every exchange: the question, who was asked, what came of it."""


def overheard(
    config: RunConfig, without: Callable[[Question, int], bool] | None = None
) -> tuple[Result, Asked, list[State]]:
    """A run in this process, every exchange of it, and the state after every round.

    Args:
        config: what is run.
        without: of a question and a partition, whether that one does not answer.
    """
    spy, states = Spy(inline_port(house_of(config)), without), list[State]()
    watch = Watch(row=lambda _row, _seconds, state: states.append(state))
    return federate(config, spy.port, watch=watch), spy.asked, states


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two sets of named tensors are equal bit for bit, types included."""
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype and torch.equal(left[n], right[n]) for n in left
    )
