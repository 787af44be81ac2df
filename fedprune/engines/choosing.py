"""Which engine plays a run: all give the same bits, so the one that is done sooner.

What a client takes was measured (`fedprune.client.footprint`); the rest is counted. It is an
estimate: what else the machine does is not in it.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fedprune.client.footprint import Footprint
from fedprune.config import RunConfig
from fedprune.config.options import CENTRAL, LOCAL, OWN_START, SMALL, Federation
from fedprune.config.terms import noised
from fedprune.engines.ray.nodes import Node, workers_that_fit
from fedprune.learning.options import Tuning, trains
from fedprune.options.refusal import counted
from fedprune.selection.options import Pruning
from fedprune.tasks.later import rows_counted
from fedprune.tasks.task import Shard

START = 9.0
"""Seconds until workers on Ray are ready, measured on two quiet cores (benchmarks/README.md)."""

EXCHANGE = 0.02
"""Seconds that a phase takes on Ray beside its clients' work, measured in the same place."""

SHARED = 0.9
"""Of what so many workers could do, what they do: the driver needs a processor, too."""

ROUND_COST, REPORT_COST = 0.05, 1.5
"""Seconds of the server: of a round, to average, write rows and a checkpoint of a small model; and
of the report at the end, which draws its pictures."""

ANSWER_COST = 0.0015
"""Seconds of an answer beside what it is: to encode, decode, check and add it."""

RAYS_PART = 0.7
"""Of the memory that is free, what Ray offers to workers: the rest is its object store."""


@dataclass(frozen=True)
class Choice:
    """An engine, ray or inline, and why: one line for people."""

    engine: str
    why: str


def chosen_engine(config: RunConfig, shards: Mapping[int, Shard], takes: Footprint) -> Choice:
    """The engine of a run that leaves it open."""
    for package in ("flwr", "ray"):
        if importlib.util.find_spec(package) is None:
            return Choice("inline", f"{package} is not installed")
    asked = [f"--workers {config.workers}"] * (config.workers > 1)
    asked += ["--ray-address"] * bool(config.ray_address) + ["--gpus"] * (config.gpus > 0)
    if asked:
        return Choice("ray", f"{' and '.join(asked)} asks for it")
    if config.secure != "none" and config.noise_source == "secret" and not noised(config):
        return Choice("inline", "a worker on Ray keeps no secret from one stage to the next")
    if not takes.turn:
        return Choice("inline", "what a client takes could not be measured")
    here, there = inline_seconds(config, shards, takes), ray_seconds(config, shards, takes)
    workers = counted(workers_for(config, takes), "worker")
    texts = {
        "ray": f"about {seconds_told(there)} with {workers}, start included",
        "inline": f"about {seconds_told(here)} in this process",
    }
    best, other = ("ray", "inline") if there < here else ("inline", "ray")
    return Choice(best, f"{texts[best]}; {other}: {texts[other]}")


def inline_seconds(config: RunConfig, shards: Mapping[int, Shard], takes: Footprint) -> float:
    """Seconds of a run in one process that has a processor for itself."""
    work = _of_clients(config, shards, takes) + one_by_one(config, shards, takes)
    return work + _of_server(config)


def _of_server(config: RunConfig) -> float:
    return REPORT_COST + rounds_of(config) * ROUND_COST


class _Turns(NamedTuple):
    """Seconds: of a client that tunes, of one that is scored, and of all that measure."""

    tuning: float
    scoring: float
    measuring: float


def _turns(config: Tuning, shards: Mapping[int, Shard], takes: Footprint) -> _Turns:
    c, beside = config, max(takes.turn - takes.step, 0.0) + ANSWER_COST
    each = takes.step / (c.batch_size * c.accumulate)
    counts = rows_counted(shards).values()
    train, held = [n.train for n in counts], [n.validation for n in counts]
    tuning = sum(beside + takes.step * step_count(c, n) for n in train) / len(train) * trains(c)
    scoring = sum(beside + each * n for n in train) / len(train)
    # A third, as there is no backward pass.
    measuring = sum(ANSWER_COST + beside / 2 + each * n / 3 for n in held)
    return _Turns(tuning, scoring, measuring)


def _of_clients(config: RunConfig, shards: Mapping[int, Shard], takes: Footprint) -> float:
    c, took = config, _turns(config, shards, takes)
    # No baseline that a cohort takes part in asks clients for scores.
    rounds = rounds_of(c) * (c.cohort * took.tuning + took.measuring)
    return rounds + _prunings(c) * c.cohort * took.scoring


def one_by_one(config: RunConfig, shards: Mapping[int, Shard], takes: Footprint) -> float:
    """Seconds of arms in which one client works at a time, on whatever engine."""
    c, took = config, _turns(config, shards, takes)
    scored = _prunings(c) * c.clients * took.scoring
    # Alone a client measures itself after every round, and everyone measures it at the end.
    alone = c.rounds * (c.clients * took.tuning + took.measuring) + c.clients * took.measuring
    pooled = c.rounds * (c.cohort * took.tuning + took.measuring)
    return (alone + scored) * (LOCAL in c.baselines) + (pooled + scored) * (CENTRAL in c.baselines)


def ray_seconds(config: RunConfig, shards: Mapping[int, Shard], takes: Footprint) -> float:
    """The same on Ray, on this machine."""
    phases = 2 * rounds_of(config) + _prunings(config)
    work = _of_clients(config, shards, takes)
    beside = _of_server(config) + one_by_one(config, shards, takes)
    return on_ray(work, phases, workers_for(config, takes)) + beside


def on_ray(work: float, phases: int, workers: int) -> float:
    """Seconds until so many workers have done clients' work of so many seconds, start included."""
    return START + phases * EXCHANGE + work / max(1.0, SHARED * workers)


def rounds_of(config: RunConfig) -> int:
    """Rounds of all arms: up to the end of the warm-up they are played once."""
    shared = [arm for arm in config.baselines if arm not in OWN_START]
    small = SMALL in config.baselines
    return config.rounds * (1 + small) + len(shared) * (config.rounds - config.warmup)


def workers_for(config: Federation, takes: Footprint) -> int:
    """How many workers a Ray on this machine would have."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    here = Node("", "", os.cpu_count() or 1, 0.0, RAYS_PART * free)
    return min(config.hosts, workers_that_fit(here, takes).workers)


def step_count(config: Tuning, n: int) -> int:
    """How many steps of training a client with so many examples takes in a round."""
    if not config.local_epochs:
        return config.local_steps
    return config.local_epochs * max(1, math.ceil(n / (config.batch_size * config.accumulate)))


def _prunings(config: Pruning) -> int:
    if config.sparsity == 0.0:
        return 0
    return max(1, (config.end - config.warmup) // config.frequency)


def seconds_told(seconds: float) -> str:
    """Seconds, or minutes, for people."""
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
