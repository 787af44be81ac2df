"""What a configuration fills in by itself: what depends on the task, the score, the numbers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fedprune.config.reduction_conflicts import reduction_defaults, reduction_round
from fedprune.config.secure_conflicts import secure_defaults
from fedprune.learning.robust import robust_defaults
from fedprune.options.plugins import with_code_of
from fedprune.options.refusal import named
from fedprune.scores.catalog import scores_of
from fedprune.scores.score import Score
from fedprune.selection.units import pattern_sparsity
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import Task

if TYPE_CHECKING:
    from fedprune.config.schema import RunConfig


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys given and a value for every key whose default depends on others.

    Values of a wrong type pass through untouched: validation names them afterwards.
    """
    given = {**_of_run(given), **given}
    plugin = str(given.get("plugin", ""))
    task_name, score_name = given.get("task", "shakespeare"), given.get("score", "taylor")
    tasks, scores = tasks_of(plugin), scores_of(plugin)
    named(("task", task_name), tasks)
    named(("score", score_name), scores)
    task, score = tasks[task_name], scores[score_name]
    defaults = {**_ANY_TASK, **task.defaults, **(_AT_START if score.at_start else {})}
    if given.get("client_column") is not None:
        defaults["split"] = "natural"
    values = {"clients": 20, **defaults, **given}
    if "clients" not in given:
        values["clients"] = _clients_of(task, values)
    for fill in (_of_task(task), _of_score(score, given.get("unit")), _of_amount(values)):
        values = {**fill, **values}
    values = {**_of_choices(values), **values}
    if given.get("local_epochs") and "local_steps" not in given:
        values["local_steps"] = 0
    numbers = [values[key] for key in ("clients", "rounds", "warmup", "cohort")]
    if all(isinstance(number, int) for number in numbers):
        sized = _sized(given, defaults, values["clients"], values["rounds"])
        if values["schedule"] == "one-shot":
            sized["end"] = sized["warmup"] + 1
        sized |= _of_robust(values, {**sized, **given}["cohort"])
        sized |= reduction_round({**values, **sized, **given})
        return {**values, **sized, **given}
    return {"hosts": 1, "end": 1, **values}


_LEARNED = (
    "task", "clients", "split", "alpha", "model", "depth", "width", "length", "data", "encoding",
    "text_column", "label_column", "target_column", "client_column", "small_owners",
    "plugin", "unit", "seed",
)  # fmt: skip
"""What a run that continues another one takes over from it, unless it is another task."""


def _of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is learned in the run that ``--init`` names."""
    if not given.get("init") or "task" in given:
        return {}
    path = Path(str(given["init"])) / "config.toml"
    if not path.is_file():
        raise ValueError(f"init={given['init']!r}: no {path.name} there; allowed: a run's folder")
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    whole = {**document.pop("followed", {}), **document}
    found = {key.replace("-", "_"): value for key, value in whole.items()}
    found = with_code_of(str(given.get("plugin", "")), found, path)
    gone = {name for key in given for name in _TOGETHER.get(key, ())}
    return {key: found[key] for key in _LEARNED if key in found.keys() - gone}


_TOGETHER = {"split": ("alpha", "client_column"), "model": ("depth", "width")}
"""Of what is taken over, the keys that only mean something beside one value of another."""


def _clients_of(task: Task, values: Mapping[str, Any]) -> int:
    """All that the data has, where it says whose a row is and the data is here; else 20.

    Raises:
        ValueError: the data cannot be read.
    """
    asked = {**dict.fromkeys(_OF_ROWS), **_of_task(task), **values, "clients": None}
    columns = [f"{name}_column" for name in ("text", "client") if name in task.columns]
    texts = [asked.get(key) for key in ("data", *columns)]
    natural = values["split"] == "natural" and all(isinstance(text, str) for text in texts)
    if task.population is None or not natural:
        return 20
    config: Any = SimpleNamespace(**asked)
    try:
        return task.population(config).possible
    except (FileNotFoundError, LookupError, TypeError):  # no such file or encoding: said later
        return 20


_OF_ROWS = ("encoding", "label_column", "target_column", "client_column", "small_owners")


def _of_task(task: Task) -> dict[str, Any]:
    named_so = [name for name in ("text", "label", "target") if name in task.columns]
    columns = {f"{name}_column": name for name in named_so}
    return columns | {"model": next(iter(task.models), "")}


def _of_score(score: Score, unit: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"score_during": "tune"} if score.tuning else {}
    if score.units and "weight" not in score.units:
        out["unit"] = score.units[0]
    if score.step is not None and unit != "n:m":
        out["scope"] = "layer"
    return out | ({"probes": 64} if score.error is not None else {})


_AMOUNTS = ("threshold", "target_bytes", "target_flops")


def _of_amount(values: Mapping[str, Any]) -> dict[str, Any]:
    if values.get("threshold") is not None:
        return {"schedule": "one-shot"}
    if any(values.get(key) is not None for key in _AMOUNTS):
        return {"schedule": "cubic"}
    if values.get("init"):  # nothing further goes unless that is asked for
        return {"schedule": "cubic", "sparsity": 0.0}
    if values.get("unit") == "n:m":
        return {"schedule": "cubic", "sparsity": _of_pattern(values.get("unit_shape"))}
    return {"schedule": "cubic", "sparsity": 0.8}


WHOLE_UNITS = ("head", "neuron", "head-neuron", "channel", "sublayer", "layer")
"""Units that can be taken out of a model."""

_SHAPES = {"n:m": (2, 4), "block": (4, 1)}


def _of_pattern(shape: Any) -> float:
    """What n:m removes; of a shape that is refused afterwards, as much as of the default one."""
    match shape:
        case [int(n), int(m)] if 1 <= n < m:
            return pattern_sparsity(n, m)
    return pattern_sparsity(*_SHAPES["n:m"])


def _of_choices(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of options that belong to the value of another one."""
    unit, out = values.get("unit", "weight"), dict[str, Any]()
    out |= {"shrink": "end"} if unit in WHOLE_UNITS else {}
    out |= {"unit_shape": _SHAPES[unit]} if isinstance(unit, str) and unit in _SHAPES else {}
    out |= {"pool": "mean"} if unit not in ("weight", "n:m") else {}
    if values.get("client_column") is not None:
        out["small_owners"] = "train-only"
    if values["split"] == "dirichlet":
        out["alpha"] = 0.5
    if values["optimizer"] == "sgd":
        out["momentum"] = 0.9
    if values["schedule"] == "regrow":
        out["regrow"] = 0.3
    if values["schedule"] == "adaptive":
        out |= {"tolerance": 0.02, "candidates": 4, "adaptive": "global"}
        out |= {"scope": "layer"} if values.get("adaptive") == "layer" else {}
    if values.get("blend", "none") != "none":
        out["blend_grid"] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    if values.get("moving") == "ema":
        out["moving_decay"] = 0.5
    if values.get("combine") == "trimmed-mean":
        out["trim"] = 0.1
    if values.get("masks", "global") != "global":
        out["average"] = "l0-mean"
    out |= _of_terms(values) | _of_privacy(values) | reduction_defaults(values)
    return out | secure_defaults(values)


def _of_privacy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the options that noise brings with it."""
    out: dict[str, Any] = {}
    if values.get("dp", "none") != "none":
        out |= {"delta": 1e-5, "dp_clip": 1.0, "weighting": "equal", "agreement": False}
        out |= {"metrics": "exact" if values.get("panel") else "noised"}
        if values.get("metrics", out["metrics"]) == "noised":
            out["dp_metric_clip"] = 10.0
    if values.get("dp") == "example":
        out["dp_rate"] = 0.1
    if values.get("dp", "none") != "none" or values.get("response") is not None:
        out["noise_source"] = "secret"
    return out


def beside_noise(config: RunConfig) -> dict[str, Any]:
    """The noise on scores and metrics of a configuration that only says that on changes."""
    if config.dp == "none":
        return {}
    asks = bool(scores_of(config.plugin)[config.score].asks) and config.sparsity != 0.0
    wanted = {"dp_score_noise": asks, "dp_metric_noise": config.metrics == "noised"}
    return {k: config.dp_noise for k, want in wanted.items() if want and vars(config)[k] is None}


def _of_terms(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of options that belong to a term of the clients' objective."""
    out: dict[str, Any] = {"temperature": 2.0} if values.get("distil") else {}
    if values.get("l1") or values.get("group_lasso"):
        out["shrinkage"] = "proximal"
    return out


def _of_robust(values: Mapping[str, Any], cohort: int) -> dict[str, Any]:
    return robust_defaults(values.get("robust"), values.get("byzantine"), cohort)


_AT_START = {"warmup": 0, "schedule": "one-shot"}


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
