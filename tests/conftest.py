"""What many tests share: tiny configurations, data that is loaded once, runs that are played once.

What a session fixture gives back is shared: tests read it and do not write to it.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from fedprune import Result, RunConfig, Shard, federate, select
from fedprune.client.host import Host, build_host
from fedprune.config import configure, to_toml
from fedprune.engines.inline import inline_port
from fedprune.protocol.messages import Aggregate, Question
from fedprune.protocol.port import Port
from fedprune.tasks.language import windows
from fedprune.tasks.tokenization import encode
from fedprune.tensors import Masks, copied, masked, state_of

TINY = {
    "task": "digits",
    "engine": "inline",
    "clients": 5,
    "cohort": 3,
    "hosts": 2,
    "alpha": 0.3,
    "rounds": 5,
    "warmup": 2,
    "end": 4,
    "local_steps": 2,
    "batch_size": 8,
    "sparsity": 0.7,
    "seed": 3,
}

# With more threads than one, results depend on the machine; the library sets this for itself.
torch.set_num_threads(1)
# How long an example takes says nothing on a machine that others use too.
settings.register_profile("fedprune", deadline=None)
settings.load_profile("fedprune")

LINES = ["To be, or not to be: that is the question.\n", "O Romeo!\n", "Exit, with a bear?\n"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``sampled(n)`` all but n of its cases, at even distances, are slow.

    Files of mostly slow tests come first, so that no process is left alone with one at the end.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for group in cases.values():
        mark = group[0].get_closest_marker("sampled")
        if mark is None:
            continue
        kept = {round((i + 0.5) * len(group) / mark.args[0] - 0.5) for i in range(mark.args[0])}
        for i, item in enumerate(group):
            if i not in kept:
                item.add_marker(pytest.mark.slow)
    balance = Counter[Path]()
    for item in items:
        balance[item.path] += 1 if item.get_closest_marker("slow") is None else -1
    items.sort(key=lambda item: balance[item.path] > 0)


@pytest.fixture(scope="session", autouse=True)
def _fault() -> Iterator[None]:
    """The fault of `tests.faults` that ``FAULT`` names, put into every test."""
    if "FAULT" not in os.environ:
        yield
        return
    from tests.faults import FAULTS, put_in

    with put_in(FAULTS[os.environ["FAULT"]]):
        yield


@pytest.fixture(scope="session")
def tiny() -> Callable[..., RunConfig]:
    """A run of five rounds on five clients: two dense, two that prune, one that recovers."""

    def made(**changes: Any) -> RunConfig:
        keys = {**TINY, **changes}
        if keys["task"] != "digits" and "alpha" not in changes:
            del keys["alpha"]  # only its own default split has one
        return configure(keys)

    return made


@pytest.fixture(scope="session")
def house_of() -> Callable[[RunConfig], Host]:
    """A host for a configuration; shards are dealt once per way of dealing them."""
    dealt: dict[tuple[Any, ...], Mapping[int, Shard]] = {}

    def made(config: RunConfig) -> Host:
        key = (config.task, config.plugin, config.clients, config.split, config.alpha, config.seed)
        host = build_host(config, dealt.get(key))
        dealt[key] = host.shards
        return host

    return made


@pytest.fixture(scope="session")
def played(house_of: Callable[[RunConfig], Host]) -> Callable[[RunConfig], Result]:
    """The result of a run in this process, kept nowhere; each configuration is played once."""
    done: dict[str, Result] = {}

    def result(config: RunConfig) -> Result:
        key = to_toml(config)
        if key not in done:
            done[key] = federate(config, inline_port(house_of(config)))
        return done[key]

    return result


@pytest.fixture(scope="session")
def cnn(
    tiny: Callable[..., RunConfig],
    house_of: Callable[[RunConfig], Host],
    played: Callable[[RunConfig], Result],
) -> tuple[Host, Question]:
    """Digits' convolutional net, trained and pruned a little, and a question about it."""
    state = played(tiny()).state
    return house_of(tiny()), Question("score", 4, state.weights, state.masks)


@pytest.fixture(scope="session")
def llama(tiny: Callable[..., RunConfig]) -> tuple[Host, Question]:
    """The small LLaMA on unequal texts of different letters, half pruned, and a question."""
    text = dict(enumerate([LINES[0] * 30, LINES[1] * 7, LINES[2] * 12]))
    shards = {
        p: Shard(windows(encode(t)), windows(encode(t[:40])), windows(encode(t[-50:])))
        for p, t in text.items()
    }
    config = tiny(task="shakespeare", clients=3, cohort=3)
    host = build_host(config, shards)
    weights = copied(state_of(host.model))
    masks = half(host, weights)
    return host, Question("score", 4, masked(weights, masks), masks)


def half(host: Host, weights: Mapping[str, Tensor]) -> Masks:
    return select({name: weights[name].abs() for name in host.layout.prunable}, 0.5)


@pytest.fixture(scope="session")
def run_folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny: Callable[..., RunConfig],
    house_of: Callable[[RunConfig], Host],
) -> Path:
    """A finished run with both baselines, with all its files."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    config = tiny(baselines=("dense", "random"))
    federate(config, inline_port(house_of(config)), folder=folder)
    return folder


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


@pytest.fixture(scope="session")
def spy() -> type[Spy]:
    return Spy


@pytest.fixture(scope="session")
def same() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]:
    """Whether two sets of named tensors are equal bit for bit, types included."""

    def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
        return left.keys() == right.keys() and all(
            left[n].dtype == right[n].dtype and torch.equal(left[n], right[n]) for n in left
        )

    return equal
