"""What a configuration fills in by itself: what the task and the score set, and what follows."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprune.config.sections import AllOptions
from fedprune.options.name_table import NameTable
from fedprune.options.plugins import with_code_of
from fedprune.options.refusal import named, refusal, shown
from fedprune.options.section import with_derived
from fedprune.scores.catalog import scores_of
from fedprune.scores.score import Score
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import Task


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys given and a value for every other one.

    Names that are in no table are said afterwards.

    Raises:
        ValueError: no such task or score, or a file that they need cannot be read.
    """
    given = {**_of_method(given), **_of_run(given), **given}
    plugin = str(given.get("plugin", ""))
    tasks, scores = tasks_of(plugin), scores_of(plugin)
    task, score = given.get("task", "shakespeare"), given.get("score", "taylor")
    named(("task", task), tasks)
    named(("score", score), scores)
    return with_derived(AllOptions, given, usual_of(tasks[task], scores[score]))


def method_given(given: Mapping[str, Any]) -> Any:
    """The `fedprune.methods.method.Method` that the keys given name; None: none that there is."""
    name, plugin = given.get("method"), str(given.get("plugin", ""))
    return _METHODS(plugin).get(name) if isinstance(name, str) else None


_METHODS = NameTable("fedprune.methods.catalog", "METHODS", "methods_of")


def _of_method(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the method that is named sets, and what it has unless the user says otherwise."""
    method = method_given(given)
    if method is None:
        return {}
    for key, value in method.sets.items():
        if given.get(key, value) != value:
            why = f"method {given['method']} sets it"
            raise refusal(key.replace("_", "-"), given[key], why, shown(value), idle=True)
    return {**method.usual, **method.sets}


def usual_of(task: Task, score: Score) -> dict[str, Any]:
    """What a task and a score set unless the user does."""
    return _of_task(task) | _of_score(score)


_LEARNED = (
    "task", "clients", "split", "alpha", "model", "depth", "width", "length", "data", "encoding",
    "text_column", "label_column", "target_column", "client_column", "small_owners",
    "plugin", "unit", "seed",
)  # fmt: skip
"""What a run that continues another one takes over from it, unless it is another task."""


def _of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is learned in the run that ``--init`` names."""
    if not given.get("init"):
        return {}
    path = Path(str(given["init"])) / "config.toml"
    if not path.is_file():
        if "task" in given:  # a device has the whole configuration, and not this folder
            return {}
        raise ValueError(f"init={given['init']!r}: no {path.name} there; allowed: a run's folder")
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    whole = {**document.pop("followed", {}), **document}
    found = {key.replace("-", "_"): value for key, value in whole.items()}
    if given.get("task", found.get("task")) != found.get("task"):
        return {}
    found = with_code_of(str(given.get("plugin", "")), found, path)
    gone = {name for key in given for name in _TOGETHER.get(key, ())}
    return {key: found[key] for key in _LEARNED if key in found.keys() - gone}


_TOGETHER = {"split": ("alpha", "client_column"), "model": ("depth", "width")}
"""Of what is taken over, the keys that only mean something beside one value of another."""


def _of_task(task: Task) -> dict[str, Any]:
    columns = [name for name in ("text", "label", "target") if name in task.columns]
    named_so = {f"{name}_column": name for name in columns}
    return {**_ANY_TASK, **named_so, "model": next(iter(task.models), ""), **task.defaults}


def _of_score(score: Score) -> dict[str, Any]:
    out: dict[str, Any] = {"warmup": 0, "schedule": "one-shot"} if score.at_start else {}
    if score.tuning:
        out["score_during"] = "tune"
    if score.units and "weight" not in score.units:
        out["unit"] = score.units[0]
    if score.step is not None:
        out["scope"] = "layer"
    return out | ({"probes": 64} if score.error is not None else {})


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


def beside_noise(config: AllOptions) -> dict[str, Any]:
    """The noise on scores and metrics of a configuration that only says that on changes."""
    if config.dp == "none":
        return {}
    asks = bool(scores_of(config.plugin)[config.score].asks) and config.sparsity != 0.0
    wanted = {"dp_score_noise": asks, "dp_metric_noise": config.metrics == "noised"}
    return {k: config.dp_noise for k, want in wanted.items() if want and vars(config)[k] is None}
