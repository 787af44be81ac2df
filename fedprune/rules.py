"""What a configuration fills in by itself, and what it refuses before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from fedprune.compression.wire import VALUE_TYPES
from fedprune.learning.training import OPTIMIZERS
from fedprune.plugins import scores_of, tasks_of
from fedprune.pruning.schedules import SCHEDULES
from fedprune.pruning.selection import SCOPES
from fedprune.tasks.splits import SPLITS
from fedprune.tasks.task import Task

if TYPE_CHECKING:
    from fedprune.config import RunConfig

BASELINES = {
    "dense": "the same rounds and seed without pruning",
    "random": "the same rounds, seed and schedule with a random mask",
}


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys given and a value for every key whose default depends on others.

    Values of a wrong type pass through untouched: validation names them afterwards.
    """
    task_name = given.get("task", "shakespeare")
    tasks = tasks_of(str(given.get("plugin", "")))
    named(("task", task_name), tasks)
    defaults = {**_ANY_TASK, **tasks[task_name].defaults}
    values = {"clients": 20, **defaults, **given}
    if values.get("threshold") is None:
        values.setdefault("sparsity", 0.8)
        values.setdefault("schedule", "cubic")
    values.setdefault("schedule", "one-shot")
    if values["split"] == "dirichlet":
        values.setdefault("alpha", 0.5)
    if values["optimizer"] == "sgd":
        values.setdefault("momentum", 0.9)
    if given.get("local_epochs") and "local_steps" not in given:
        values["local_steps"] = 0
    numbers = [values[key] for key in ("clients", "rounds", "warmup", "cohort")]
    if all(isinstance(number, int) for number in numbers):
        sized = _sized(given, defaults, values["clients"], values["rounds"])
        if values["schedule"] == "one-shot":
            sized["end"] = sized["warmup"] + 1
        return {**values, **sized, **given}
    return {"hosts": 1, "end": 1, **values}


def _sized(
    given: Mapping[str, Any], defaults: Mapping[str, Any], clients: int, rounds: int
) -> dict[str, int]:
    """What scales with the number of clients and of rounds, unless it is given."""
    warmup = given.get("warmup", defaults["warmup"] * rounds // defaults["rounds"])
    return {
        "warmup": warmup,
        "cohort": min(defaults["cohort"], clients),
        "hosts": min(clients, 8),
        "end": warmup + max(1, (rounds - warmup) * 2 // 3),
    }


_ANY_TASK = {
    "split": "iid",
    "rounds": 20,
    "warmup": 5,
    "cohort": 10,
    "optimizer": "sgd",
    "lr": 0.05,
    "batch_size": 16,
    "local_steps": 10,
}


def named(item: tuple[str, Any], table: Iterable[str]) -> None:
    """Refuse a value that is not a name in the table.

    Raises:
        ValueError: with the nearest name and all that are allowed.
    """
    (key, value), names = item, list(table)
    if value in names:
        return
    near = get_close_matches(str(value), names, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(f"{key}={value!r}: no such {key}{hint}; allowed: {', '.join(names)}")


def check(config: RunConfig) -> None:
    """Refuse names that are in no table and values that do not fit together.

    Raises:
        ValueError: key=value: what is wrong; allowed: what is.
    """
    task = tasks_of(config.plugin)[config.task]
    named(("score", config.score), scores_of(config.plugin))
    named(("scope", config.scope), SCOPES)
    named(("schedule", config.schedule), SCHEDULES)
    named(("optimizer", config.optimizer), OPTIMIZERS)
    named(("wire", config.wire), VALUE_TYPES)
    named(("split", config.split), SPLITS)
    if config.split not in task.splits:
        _refuse(
            "split", config.split, f"task {config.task} has no such split", ", ".join(task.splits)
        )
    for key, wrong, reason, allowed in [*_out_of_bounds(config), *_unused(config, task)]:
        if wrong:
            _refuse(key, vars(config)[key.replace("-", "_")], reason, allowed)


Misfit = tuple[str, bool, str, str]
"""Key, whether it is wrong, why, and what is allowed."""


def _out_of_bounds(c: RunConfig) -> list[Misfit]:
    """Values that contradict others."""
    prunes = c.sparsity != 0.0
    late = "the last pruning is not between warm-up and the last round"
    both = "a threshold and a sparsity exclude each other"
    once = f"{c.schedule} prunes once, in round {c.warmup + 1}"
    steps = "steps and epochs exclude each other, and one must be above 0"
    last_only = c.schedule == "one-shot" and prunes
    names = ", ".join(BASELINES)
    return [
        ("cohort", c.cohort > c.clients, "more clients than there are", f"1 to {c.clients}"),
        ("hosts", c.hosts > c.clients, "more hosts than clients", f"1 to {c.clients}"),
        ("min-clients", c.min_clients > c.cohort, "more than the cohort", f"1 to {c.cohort}"),
        (
            "warmup",
            prunes and c.warmup >= c.rounds,
            "no round is left to prune in",
            f"0 to {c.rounds - 1}",
        ),
        (
            "end",
            prunes and not c.warmup < c.end <= c.rounds,
            late,
            f"{c.warmup + 1} to {c.rounds}",
        ),
        ("end", last_only and c.end != c.warmup + 1, once, str(c.warmup + 1)),
        ("frequency", last_only and c.frequency != 1, once, "1"),
        ("threshold", (c.threshold is None) == (c.sparsity is None), both, "one of them"),
        ("local-steps", (c.local_steps > 0) == (c.local_epochs > 0), steps, "one of them"),
        ("baselines", len(set(c.baselines)) < len(c.baselines), "named twice", names),
    ]


def _unused(c: RunConfig, task: Task) -> list[Misfit]:
    """Values that nothing would read: better refused than ignored."""
    inline, cluster, fixed = c.engine == "inline", bool(c.ray_address), c.threshold is not None
    here = "inline runs in this process"
    outside, theirs = c.engine == "flower", "under flwr run Flower's own settings decide"
    out = "leave it out"
    shared = fixed and c.scope != "global"
    noise = fixed and "random" in c.baselines
    return [
        ("baselines", noise, "random scores mean nothing to a threshold", "dense"),
        ("schedule", fixed and c.schedule != "one-shot", "a threshold prunes once", "one-shot"),
        ("scope", shared, "a threshold looks at every weight by itself", "global"),
        ("alpha", c.alpha is not None and c.split != "dirichlet", f"split is {c.split}", out),
        (
            "momentum",
            c.momentum is not None and c.optimizer != "sgd",
            f"{c.optimizer} has none",
            out,
        ),
        ("data", bool(c.data) and not task.folder, f"task {c.task} reads no folder", out),
        ("gpus", inline and c.gpus > 0, f"{here}, nothing is shared out", "-1 (if there), 0"),
        ("workers", inline and c.workers > 1, here, "0 or 1, or --engine ray"),
        ("workers", outside and c.workers > 0, theirs, "leave it out"),
        ("ray-address", outside and cluster, theirs, out),
        ("workers", cluster and c.workers > 0, "a cluster's own processors are all used", "0"),
        ("ray-address", inline and cluster, "inline does not use Ray", out),
    ]


def _refuse(key: str, value: Any, reason: str, allowed: str) -> None:
    raise ValueError(f"{key}={value!r}: {reason}; allowed: {allowed}")
