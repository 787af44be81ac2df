"""How a model is built again: the keys of its configuration, and what was edited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedprune.codec.coded_file import coded_length
from fedprune.config import RunConfig, configure
from fedprune.options.plugins import with_code_of
from fedprune.structure.depgraph import recognise
from fedprune.structure.edits import Edits, from_json, to_json
from fedprune.structure.families.catalog import SMALL_MODELS
from fedprune.structure.surgery import reshaped
from fedprune.tasks.building import built
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import Task, class_names_of
from fedprune.tensors.lazy import shapes_of
from fedprune.tensors.models import frozen_of, state_of
from fedprune.tensors.named import Masks, Tensors

_ORIGIN = (
    *("task", "plugin", "model", "depth", "width", "length", "data", "encoding"),
    *("text_column", "label_column", "class_names"),
)

_FOUND = ("structure", "unit")  # how the channels were found that the edits cut


def origin_of(config: RunConfig, edits: Edits = ()) -> dict[str, Any]:
    """How a model is built: keys of the configuration for the dense one, and what was edited.

    The names of its classes are among the keys, as the task knows them: so a model that learned
    the classes of some data is built again without the data.
    """
    keys = _ORIGIN if config.structure == "auto" else (*_ORIGIN, *_FOUND)
    names = class_names_of(tasks_of(config.plugin)[config.task], config)
    values = {**{key: vars(config)[key] for key in keys}, "class_names": list(names)}
    return {key: value for key, value in values.items() if value not in (None, "", [])} | {
        "plugin": config.plugin,
        **({"edits": json.loads(to_json(edits))} if edits else {}),
    }


def coded_size(
    config: RunConfig, weights: Mapping[str, Tensor], masks: Masks, edits: Edits = ()
) -> int:
    """Bytes of the coded file that these weights would make under these masks."""
    return coded_length(origin_of(config, edits), weights, masks)


def blank(origin: Mapping[str, Any], plugin: str = "") -> nn.Module:
    """The model that the head of a coded file describes, its values as the task makes them.

    Raises:
        ValueError: it is of a plug-in, and none is given.
    """
    return with_edits_of(built_by(at_hand(with_code_of(plugin, origin, "a coded file"))), origin)


def config_of(origin: Mapping[str, Any]) -> RunConfig:
    """The configuration that an origin holds keys of."""
    return configure({key: origin[key] for key in (*_ORIGIN, *_FOUND) if key in origin})


def built_by(origin: Mapping[str, Any]) -> nn.Module:
    """The dense model of an origin, as its task builds it; ValueError: no such task."""
    tasks = tasks_of(origin.get("plugin", ""))
    if origin["task"] not in tasks:
        raise ValueError(f"task {origin['task']!r} is not known here; pass the model to load()")
    config, task = config_of(origin), tasks[origin["task"]]
    return with_channels(built(task, config), config, task)


def with_channels(model: nn.Module, config: RunConfig, task: Task) -> nn.Module:
    """The model, with its channels kept on it where ``--structure depgraph`` asks for that.

    Raises:
        ValueError: as `fedprune.structure.depgraph.recognise`.
    """
    if config.structure == "depgraph" and task.dummy is not None:
        return recognise(model, lambda m, part: task.loss(m, part).total, task.dummy(config))
    return model


def at_hand(origin: Mapping[str, Any], saved: Path | None = None) -> Mapping[str, Any]:
    """The origin of a model, with the folder it was saved in for one of the user's that is gone.

    A config says nothing of edits: the model they begin with is that of the user's folder only.

    Raises:
        FileNotFoundError: there is such a folder no more, and the model is a cut one.
    """
    name = str(origin.get("model", ""))
    if not name or Path(name).exists() or name in SMALL_MODELS:
        return origin
    if saved is not None and not origin.get("edits") and (saved / "config.json").is_file():
        return {**origin, "model": str(saved)}
    if Path(name).is_absolute() or name.startswith("."):
        raise FileNotFoundError(
            f"model={name!r}: no such folder, and what was cut of its model is put together from "
            "it; allowed: that folder where it was, or load(folder, model)"
        )
    return origin


def with_edits_of(model: nn.Module, origin: Mapping[str, Any]) -> nn.Module:
    """The model cut as its origin says."""
    return reshaped(model, from_json(json.dumps(origin.get("edits", []))))


def check_shapes(model: nn.Module, weights: Tensors, path: Path) -> None:
    """ValueError where the weights are not of the model's names and shapes."""
    here, there = shapes_of({**state_of(model), **frozen_of(model)}), shapes_of(weights)
    if here != there:
        odd = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
        raise ValueError(f"{path}: does not fit the model: {odd[0]} differs")
