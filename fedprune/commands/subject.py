"""What a command looks at: the model of a run, of a folder, of a file, or a pretrained one."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fedprune.codec.coded_file import CODED_NAME, from_coded
from fedprune.commands.model_options import MODEL_HELP
from fedprune.config import RunConfig, configure, recorded
from fedprune.export.folders import load
from fedprune.export.manifest import MANIFEST_NAME, read_manifest
from fedprune.options.plugins import with_code_of
from fedprune.options.refusal import ConfigError, refuse
from fedprune.protocol.models import dense_model
from fedprune.protocol.origin import origin_of
from fedprune.records.folder import CONFIG_NAME
from fedprune.runtime.sums import check_sums
from fedprune.structure.edits import Edits, from_json
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import Task
from fedprune.tensors.named import Masks

_KEYS = ("data", "encoding", "text_column", "label_column", "length", "plugin")
"""Options that a task may need to build its model."""


@dataclass(frozen=True)
class Subject:
    """A model and what is known about it."""

    name: str  # what the user typed
    model: nn.Module  # in eval mode on the CPU, with the shape and the values it was saved with
    config: RunConfig  # of its run; else the defaults of its task, with the seed 0
    # True = kept, of the prunable tensors; None where nobody wrote them down
    masks: Masks | None = None
    # the run's folder, with its summary; None where the model comes from elsewhere
    run: Path | None = None
    edits: Edits = ()  # what was done to the shape of the dense model

    @property
    def task(self) -> Task:
        """What the model learned."""
        return tasks_of(self.config.plugin)[self.config.task]

    @property
    def origin(self) -> dict[str, Any]:
        """How it is built: keys for the dense model, and what was edited."""
        return origin_of(self.config, self.edits)


def chosen_subject(arguments: Namespace) -> Subject:
    """The subject that a command line names."""
    return subject(arguments.model, arguments.task, given_keys(arguments))


def given_keys(arguments: Namespace) -> dict[str, Any]:
    """The keys of a configuration that the command line gives beside the task."""
    given = {key: vars(arguments)[key] for key in _KEYS}
    return {key: value for key, value in given.items() if value is not None}


def subject(path: str, task: str | None = None, keys: Mapping[str, Any] | None = None) -> Subject:
    """The model at a path, by what lies there.

    `path`: see `MODEL_HELP`. `task`: what a model that fedprune did not save is for; refused for
    one that it did. `keys`: further keys of a configuration that such a task needs (``data``).

    Raises:
        ConfigError: the path is nothing that can be read, or the task does not go with it.
        FileNotFoundError: a pretrained model cannot be had.
        ValueError: a file is damaged or does not fit.
    """
    folder = Path(path)
    if task is not None:
        return _pretrained(path, {"task": task, "model": path, **(keys or {})})
    plugin = str((keys or {}).get("plugin", ""))
    odd = next((key for key in keys or {} if key != "plugin"), None)
    if odd is not None:
        raise ConfigError(f"{odd.replace('_', '-')}={(keys or {})[odd]!r}: only beside --task")
    if (folder / CONFIG_NAME).is_file():
        return _of_run(path, folder, plugin)
    if (folder / MANIFEST_NAME).is_file():
        return _of_folder(path, folder, plugin)
    if (folder / CODED_NAME).is_file():
        head, _, masks = from_coded((folder / CODED_NAME).read_bytes(), path)
        config = _config_of(head, plugin, folder / CODED_NAME)
        return Subject(path, load(folder, plugin=plugin), config, masks, edits=_edits_of(head))
    raise ConfigError(f"model={path!r}: {_reason(folder)}; allowed: {MODEL_HELP}")


def _reason(folder: Path) -> str:
    if not folder.exists():
        return "nothing is there, and no --task says that it is a family or a hub id"
    if (folder / "config.json").is_file():
        return "saved by transformers, and no --task says what it is for"
    return f"neither {CONFIG_NAME} nor {MANIFEST_NAME} nor {CODED_NAME} is in it"


def _of_run(path: str, folder: Path, plugin: str) -> Subject:
    coded = folder / CODED_NAME
    check_sums(folder, ended=coded.is_file())
    if not coded.is_file():
        raise ConfigError(
            f"model={path!r}: a run that has not ended, it has no {CODED_NAME}; allowed: "
            f"fedprune run --resume {path} first"
        )
    head, _, masks = from_coded(coded.read_bytes(), path)
    # The classes of the data are the file's to say: the data may be gone.
    names = {key: tuple(head[key]) for key in ("class_names",) if key in head}
    text = (folder / CONFIG_NAME).read_text()
    config = recorded(text, plugin, folder / CONFIG_NAME).model_copy(update=names)
    model = load(folder, plugin=plugin)
    return Subject(path, model, config, masks, folder, _edits_of(head))


def _of_folder(path: str, folder: Path, plugin: str) -> Subject:
    about = read_manifest(folder)
    masks = None
    if (folder / CODED_NAME).is_file():
        masks = from_coded((folder / CODED_NAME).read_bytes(), path)[2]
    config = _config_of(about, plugin, folder / MANIFEST_NAME)
    return Subject(path, load(folder, plugin=plugin), config, masks, edits=_edits_of(about))


def _config_of(about: Mapping[str, Any], plugin: str, where: Path) -> RunConfig:
    """An export knows its run's whole configuration, a run's own files what builds the model."""
    keys = set(RunConfig.model_fields)
    own = {k: v for k, v in about.items() if k in keys}
    return configure(with_code_of(plugin, {**about.get("config", {}), **own}, where))


def _edits_of(about: Mapping[str, Any]) -> Edits:
    return from_json(json.dumps(about.get("edits", [])))


def _pretrained(path: str, keys: Mapping[str, Any]) -> Subject:
    if (Path(path) / MANIFEST_NAME).is_file() or (Path(path) / CONFIG_NAME).is_file():
        refuse("task", keys["task"], f"{path} says itself what it is for", "without --task")
    config = configure(keys)
    return Subject(path, dense_model(config).eval(), config)
