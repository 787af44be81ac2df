"""Booking under kills at any write and any question: never less than was released, as a property.

A run is killed at a random one of its writes and questions, a few times in a row, and goes on each
time. What is not on the disk yet when a write is killed is lost in part. An independent recorder
counts the distinct values that came out with noise. Other numbers of runs:

    KILLED=300 python -m pytest tests/privacy/test_killed.py
"""

import math
import os
import random
import stat
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from fedprune import RunConfig, federate
from fedprune.client import serving
from fedprune.client.host import build_host
from fedprune.config import configure
from fedprune.engines.inline import inline_port
from fedprune.privacy.ledger_file import LEDGER_NAME, read_ledger
from fedprune.protocol import server_privacy
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question

RUNS = int(os.environ.get("KILLED", "6"))
KEYS = {"task": "digits", "model": "mlp", "clients": 3, "cohort": 3, "rounds": 2, "warmup": 0}
KEYS |= {"engine": "inline", "hosts": 1, "local_steps": 1, "batch_size": 8, "sparsity": 0.5}
KEYS |= {"end": 1}
CLIENT = {**KEYS, "dp": "client", "dp_noise": 2.0}
KINDS: dict[str, dict[str, Any]] = {
    "client": CLIENT,
    "seeded": {**CLIENT, "noise_source": "seeded"},
    "example": {**KEYS, "dp": "example", "dp_noise": 2.0},
}


class Killed(BaseException):
    """The process ended here."""


@dataclass
class World:
    """Where the run is killed, and what came out of it with noise.

    Attributes:
        left: writes and questions until the kill; None: none comes.
        lost: draws how much of a write is lost.
        values: distinct values by round and kind of question (and client, where that one adds
            noise).
    """

    lost: random.Random
    left: int | None = None
    moments: int = 0
    values: dict[tuple[int, str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    synced: dict[tuple[int, int], int] = field(default_factory=dict)

    def moment(self) -> None:
        self.moments += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed

    def fsync(self, descriptor: int) -> None:
        """As a disk does it that may have written a part when the power goes."""
        about = os.fstat(descriptor)
        key = (about.st_dev, about.st_ino)
        try:
            self.moment()
        except Killed:
            if stat.S_ISREG(about.st_mode):
                least = min(self.synced.get(key, 0), about.st_size)
                os.truncate(descriptor, self.lost.randint(least, about.st_size))
            raise
        self.synced[key] = about.st_size

    def came(self, question: Question, partition: int, value: Any) -> None:
        self.values[question.round, question.kind, partition].add(repr(value))


def listened(world: World, config: RunConfig, patch: pytest.MonkeyPatch) -> None:
    """Have the recorder hear of every value with noise on it, where the noise is added."""
    noised, released, replaced = server_privacy.noised_sum, serving.encoded, Path.replace

    def of_the_server(aggregate: Aggregate, question: Question, *rest: Any) -> Aggregate:
        out = noised(aggregate, question, *rest)
        if out is not aggregate:
            total = None if out.total is None else out.total.numpy().tobytes()
            world.came(question, -1, (total, sorted(out.totals.items())))
        return out

    def of_a_client(host: Any, question: Question, partition: int, meant: Any) -> Any:
        packet = released(host, question, partition, meant)
        parts = [packet.head, *packet.buffers.values()]
        world.came(question, partition, [bytes(part) for part in parts])
        return packet

    def renamed(path: Path, to: Any) -> Path:
        world.moment()
        return replaced(path, to)

    patch.setattr(Path, "replace", renamed)
    patch.setattr(os, "fsync", world.fsync)
    if config.dp == "client":
        patch.setattr(server_privacy, "noised_sum", of_the_server)
    else:
        patch.setattr(serving, "encoded", of_a_client)


Booked = Counter[tuple[int, str]]


def noised_lines(folder: Path) -> list[dict[str, Any]]:
    return [x for x in read_ledger(folder / LEDGER_NAME) if x["covered"] and x["z"] is not None]


def counted(lines: Sequence[dict[str, Any]]) -> Booked:
    return Counter((x["round"], x["kind"]) for x in lines)


def played(world: World, config: RunConfig, host: Any, folder: Path) -> float:
    """Epsilon at the end of a run that goes on where the folder holds one."""
    port = inline_port(host)

    def ask(question: Question, partitions: Sequence[int]) -> Aggregate:
        world.moment()
        aggregate = port.ask(question, partitions)
        world.moment()
        return aggregate

    resume = (folder / "config.toml").exists()
    told = federate(config, replace(port, ask=ask), folder=folder, resume=resume).summary
    return float(told["privacy"]["rdp"])


def exact_epsilon(spent: Sequence[float], delta: float) -> float:
    """Of Gaussians with these multipliers on the same clients: no accounting can say less.

    The privacy profile of a Gaussian with mean sqrt(sum of 1/z^2) (Balle and Wang 2018, theorem 8).
    """
    mu, of = math.sqrt(sum(z**-2 for z in spent)), NormalDist().cdf
    low, high = 0.0, 200.0
    for _ in range(80):
        e = (low + high) / 2
        at = of(mu / 2 - e / mu) - math.exp(min(e, 700)) * of(-mu / 2 - e / mu)
        low, high = (e, high) if at > delta else (low, e)
    return high


@pytest.fixture(scope="module", params=KINDS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Any, float, Booked, int]:
    """A configuration and its host; epsilon, what was booked and the moments without a kill."""
    config = configure(KINDS[request.param])
    host, world = build_host(config), World(random.Random(0))
    with pytest.MonkeyPatch.context() as patch:
        listened(world, config, patch)
        folder = tmp_path_factory.mktemp("whole") / "run"
        epsilon = played(world, config, host, folder)
    booked = counted(noised_lines(folder))
    assert all(len(found) == booked[r, k] for (r, k, _), found in world.values.items())
    return config, host, epsilon, booked, world.moments


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seed", range(RUNS // 3))
def test_epsilon_is_never_less_than_what_was_released(seed, whole, tmp_path, monkeypatch):
    config, host, unbroken, once, moments = whole
    chance, folder, kills = random.Random(seed), tmp_path / "run", 0
    world = World(chance)
    listened(world, config, monkeypatch)
    for _ in range(chance.randint(1, 4)):
        world.left = chance.randrange(moments)
        with suppress(Killed):
            played(world, config, host, folder)
        kills += world.left < 0
    world.left = None
    epsilon, noised = played(world, config, host, folder), noised_lines(folder)
    booked = counted(noised)
    assert all(booked[r, k] >= len(found) for (r, k, _), found in world.values.items())
    assert epsilon >= unbroken
    if config.dp == "client":
        z = {(x["round"], x["kind"]): x["z"] for x in noised}
        spent = [z[r, k] for (r, k, _), found in world.values.items() for _ in found]
        assert epsilon >= exact_epsilon(spent, config.delta or 1e-5)
    # What is stored is not asked for again: a kill costs one question, and often none.
    assert (booked - once).total() <= kills
    if booked == once:
        assert epsilon == unbroken
