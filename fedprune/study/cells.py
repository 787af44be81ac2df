"""The cells of a study: for every combination of levels a configuration, a name and a digest."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprune.config import RunConfig, configure, to_toml, with_values
from fedprune.config.profiles import profiles_in
from fedprune.methods.catalog import check_method
from fedprune.options.refusal import ConfigError, refuse
from fedprune.records.bound import RESUMABLE, began_with
from fedprune.runtime.sums import sha256_of


@dataclass(frozen=True)
class GridCell:
    """One run of a study."""

    name: str  # of its folder: what tells it from the others, and the start of its digest
    labels: Mapping[str, str]  # what it is called in each factor of the grid
    config: RunConfig  # what it runs
    digest: str  # SHA-256 of all that its result depends on: see `cell_digest`


Levels = dict[str, dict[str, Any]]  # The keys of each level of a factor, by its label


def cells_of(base: Mapping[str, Any], levels: Mapping[str, Levels]) -> Iterator[GridCell]:
    """A cell for every combination of levels."""
    files: dict[str, str] = {}
    for combination in itertools.product(*(its.items() for its in levels.values())):
        labels = dict(zip(levels, (label for label, _ in combination), strict=True))
        keys = {k: v for _, its in combination for k, v in its.items()}
        try:
            config = configure({"engine": "inline", **base, **keys})
            check_method(config)
            _check_own(config)
        except ConfigError as error:
            raise ConfigError(f"{_told(labels)}: {error}") from None
        digest = cell_digest(config, files)
        yield GridCell(_folder_name(labels, digest), labels, config, digest)


def _check_own(config: RunConfig) -> None:
    if config.out:
        refuse("out", config.out, "every run has a folder of the study's", "--out")
    if config.engine == "flower":
        raise ConfigError("engine='flower': started by flwr run; allowed: auto, ray, inline")
    if config.profiles:
        profiles_in(config.profiles)
    for key in ("init", "teacher"):
        if (path := getattr(config, key)) and not Path(path).exists():
            raise ConfigError(f"{key}={path!r}: not there; allowed: the folder of a run")


def _told(labels: Mapping[str, str]) -> str:
    return "cell " + ", ".join(f"{factor}={label}" for factor, label in labels.items())


def _folder_name(labels: Mapping[str, str], digest: str) -> str:
    text = re.sub(r"[^\w.=-]+", "-", "-".join(labels.values())).strip("-.")
    return f"{text[:60]}-{digest[:10]}".lstrip("-")


def cell_digest(config: RunConfig, files: dict[str, str]) -> str:
    """SHA-256 of all that the result of a run depends on, as far as this machine can tell.

    The configuration without what changes no bit, the user's files, that of the devices' classes,
    the plug-in, the versions of the packages. Not of it: data that comes with an installed package.

    `files`: digests of files and folders by path, which is filled.
    """
    free = {key: RunConfig.model_fields[key].default for key in (*RESUMABLE, "out")}
    text = to_toml(with_values(config, free)).encode()
    models = {"init": config.init, "teacher": config.teacher}
    for path in filter(None, (config.data, config.model)):
        if path not in files and Path(path).exists():
            files[path] = _files_digest(Path(path))
    data = "".join(files.get(path, "") for path in filter(None, (config.data, config.model)))
    bound = began_with(text, config.plugin, data, models, config.profiles)
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()


def _files_digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    lines = [f"{file.relative_to(path)} {sha256_of(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
