"""The arm of one client that has all data: as many examples as the run's clients have trained on.

No federation could play it: its client is made here, in this process, and what it is asked is no
release of anybody's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fedprune.client.host import build_host
from fedprune.config import RunConfig, with_values
from fedprune.config.options import CENTRAL
from fedprune.engines.inline import inline_port
from fedprune.learning.options import trains
from fedprune.learning.steps import examples_trained_on, steps_taken
from fedprune.options.refusal import ConfigError
from fedprune.protocol.port import Port
from fedprune.records.arms import PRUNED
from fedprune.server.rows import Row
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.later import each_shard, rows_counted, shard_once
from fedprune.tasks.shards import shards_of
from fedprune.tasks.task import Part, Shard


def pooled_arm(
    config: RunConfig, arm: RunConfig, port: Port, rows: Sequence[Row], steps: Sequence[float] = ()
) -> tuple[RunConfig, Port, dict[str, float]]:
    """The configuration of the arm, the port to its one client, and the examples trained on.

    `arm`: of the arm, as `fedprune.records.arms.arms_of` has it. `rows`: of the run, all rounds of
    its pruned arm among them. `steps`: part of its steps that each client takes; none: all.

    Returns:
        Configuration and port, and how many examples a round trains on: the mean of the federated
        rounds, and that of the arm, which takes whole steps.
    """
    task = tasks_of(config.plugin)[config.task]
    shards = shards_of(task, config)
    sizes = {p: count.train for p, count in rows_counted(shards).items()}
    training, measuring = list(port.training()), port.measuring()
    seen = federated_examples(config, sizes, [row for row in rows if row["arm"] == PRUNED], steps)
    whole = sum(sizes[p] for p in training)
    one = _only(config, arm, seen, whole, len(training))
    parts = {
        "train": [shard_once(shards, p).train for p in training],
        "validation": [shard_once(shards, p).validation for p in measuring],
        "test": [shard_once(shards, p).test for p in measuring],
    }
    pooled = Shard(**{name: joined_parts(those) for name, those in parts.items()})
    host = build_host(one, {0: pooled}, tried=True)
    counts = {"federated": seen, "centralised": float(examples_trained_on(whole, one))}
    return one, inline_port(host), counts


def joined_parts(parts: Sequence[Part]) -> Part:
    """The examples of several parts, one after the other."""
    filled = [part for part in parts if any(len(t) for t in part.values())] or parts[:1]
    return {name: torch.cat([part[name] for part in filled]) for name in filled[0]}


def check_poolable(config: RunConfig) -> None:
    """Refuse data that are not one where a baseline wants them so, before anything starts."""
    if CENTRAL not in config.baselines:
        return
    kinds = {
        name: {(t.shape[1:], t.dtype) for _, s in shards for t in [s.train[name]] if len(t)}
        for shards in [list(each_shard(shards_of(tasks_of(config.plugin)[config.task], config)))]
        for name in shards[0][1].train
    }
    unlike = [name for name, found in kinds.items() if len(found) > 1]
    if unlike:
        raise ConfigError(
            f"baselines={CENTRAL!r}: clients' {unlike[0]} differ in shape or type, so that they "
            "are not one set of examples; allowed: other baselines"
        )


def federated_examples(
    config: RunConfig, sizes: dict[int, int], rows: Sequence[Row], steps: Sequence[float] = ()
) -> float:
    """How many examples a round of a run has trained on, on average over its rounds.

    Those of a client that failed count for nothing, as they do for the model.

    `steps`: part of its steps that each client takes (`fedprune.server.plan.Plan.steps`).
    """

    def seen_by(p: int) -> int:
        fewer = {"local_steps": steps_taken(config.local_steps, steps[p])} if steps else {}
        return examples_trained_on(sizes[p], with_values(config, fewer))

    found = list[float]()
    for row in rows:
        failed = {f["partition"] for f in row["failures"] if f["phase"] == "tune"}
        those = [p for p in row["cohort"] if p not in failed]
        seen = sum(seen_by(p) for p in those)
        # Of more than a cohort that were asked, not all counted: which ones no row says.
        found.append(seen * min(1.0, int(row["answered"]) / max(1, len(those))))
    return sum(found) / max(1, len(found))


def _only(config: RunConfig, arm: RunConfig, seen: float, whole: int, clients: int) -> RunConfig:
    changes: dict[str, Any] = {"clients": 1, "hosts": 1, "engine": "inline"}
    if trains(config):
        passes, rest = divmod(seen, whole)
        of_step = config.batch_size * config.accumulate
        steps = passes * math.ceil(whole / of_step) + rest / of_step
        changes |= {"local_epochs": 0, "local_steps": max(1, round(steps))}
    if config.score_examples is not None:
        who = config.score_cohort
        asked = who if isinstance(who, int) else clients if who == "all" else config.cohort
        changes["score_examples"] = config.score_examples * asked
    return with_values(arm, changes)
