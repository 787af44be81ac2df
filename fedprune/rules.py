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
    if "local_epochs" in given and "local_steps" not in given:
        values["local_steps"] = 0
    numbers = [values[key] for key in ("clients", "rounds", "warmup", "cohort")]
    if all(isinstance(number, int) for number in numbers):
        return {**values, **_sized(given, defaults, values["clients"], values["rounds"]), **given}
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
    for key, value, wrong, allowed in _misfits(config):
        if wrong:
            _refuse(key, value, _REASONS[key], allowed)


_REASONS = {
    "cohort": "more clients than there are",
    "hosts": "more hosts than clients",
    "min-clients": "more than the cohort",
    "warmup": "no round is left to prune in",
    "end": "the last pruning is not between warm-up and the last round",
    "threshold": "a threshold and a sparsity exclude each other",
    "schedule": "a threshold prunes once",
    "local-steps": "steps and epochs exclude each other, and one must be above 0",
    "gpus": "inline runs in this process, there are no workers to share among",
    "workers": "inline runs in this process",
    "ray-address": "inline does not use Ray",
    "baselines": "named twice",
}


def _misfits(c: RunConfig) -> Iterable[tuple[str, Any, bool, str]]:
    inline = c.engine == "inline"
    prunes = c.sparsity != 0.0
    return [
        ("cohort", c.cohort, c.cohort > c.clients, f"1 to {c.clients}"),
        ("hosts", c.hosts, c.hosts > c.clients, f"1 to {c.clients}"),
        ("min-clients", c.min_clients, c.min_clients > c.cohort, f"1 to {c.cohort}"),
        ("warmup", c.warmup, prunes and c.warmup >= c.rounds, f"0 to {c.rounds - 1}"),
        (
            "end",
            c.end,
            prunes and not c.warmup < c.end <= c.rounds,
            f"{c.warmup + 1} to {c.rounds}",
        ),
        ("threshold", c.threshold, (c.threshold is None) == (c.sparsity is None), "one of them"),
        (
            "schedule",
            c.schedule,
            c.threshold is not None and c.schedule != "one-shot",
            "one-shot",
        ),
        ("local-steps", c.local_steps, (c.local_steps > 0) == (c.local_epochs > 0), "one of them"),
        ("gpus", c.gpus, inline and c.gpus not in (-1.0, 0.0), "-1 (as there is), 0"),
        ("workers", c.workers, inline and c.workers > 1, "0 or 1, or --engine ray"),
        ("ray-address", c.ray_address, inline and bool(c.ray_address), "leave it out"),
        ("baselines", c.baselines, len(set(c.baselines)) < len(c.baselines), ", ".join(BASELINES)),
    ]


def _refuse(key: str, value: Any, reason: str, allowed: str) -> None:
    raise ValueError(f"{key}={value!r}: {reason}; allowed: {allowed}")
