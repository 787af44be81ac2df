"""What workers need on their nodes, and what of it can be sent: package, files, shards."""

from __future__ import annotations

import importlib.metadata
import io
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from fedprune.config import RunConfig
from fedprune.engines.ray.serving import shards_sent
from fedprune.engines.ray.worker import PACKAGE, look_of, sources_digest
from fedprune.options.plugins import files_of, roots_of
from fedprune.tasks.task import Shard

SAME = ("torch", "flwr", "numpy", "transformers")
"""Packages of which all nodes must have the same version, where the driver has them: bits depend
on it. Python and Ray have to be the same too: Ray itself sees to that."""

LARGEST = 2**32
"""Bytes of files that are sent to nodes that lack them."""

_HOME = Path(__file__).resolve().parents[2]


@dataclass(eq=False)
class NodeFiles:
    """What a run's workers need.

    Attributes:
        needs: see `fedprune.engines.ray.worker.Worker`.
        files: by option, the path that it names.
        shards: of the run's configuration, in Ray's object store.
        run: names the run on its nodes.
        unpacked: whether anything was sent to any node.
    """

    needs: Mapping[str, Any]
    files: Mapping[str, Path]
    shards: Any
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    unpacked: bool = False
    _sent: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def missing(self, lacking: Sequence[str]) -> list[str]:
        """Why what is lacking cannot be sent; nothing where it can."""
        large = {k: sum(f[1] for f in self.needs["files"][k][1]) for k in lacking if k != PACKAGE}
        return [
            f"{self.files[key]} is not there, and {size / 2**30:.1f} GiB are too much to send; "
            f"allowed: up to {LARGEST / 2**30:g} GiB, or a disk that all nodes share"
            for key, size in large.items()
            if size > LARGEST
        ]

    def sent(self, lacking: Sequence[str]) -> tuple[list[tuple[str, str]], list[Any]]:
        """By what is lacking, its name; and its content, in the object store once for all nodes."""
        for key in lacking:
            self.unpacked = True
            if key not in self._sent:
                name, content = _packed(key, self.files.get(key, _HOME))
                self._sent[key] = name, ray.put(np.frombuffer(content, np.uint8))
        return [(k, self._sent[k][0]) for k in lacking], [self._sent[k][1] for k in lacking]


def node_files_of(config: RunConfig, shards: Mapping[int, Shard]) -> NodeFiles:
    """What the workers of a run need, as it is here."""
    named = {"data": config.data, "plugin": config.plugin, "model": config.model}
    named |= {"init": config.init}
    files = {key: Path(value).resolve() for key, value in named.items() if value}
    files = {key: path for key, path in files.items() if path.exists()}
    looks = {key: look_of(path) for key, path in files.items()}
    if len(files_of(config.plugin)) > 1:
        looks["plugin"] = []  # its path says nothing of where its imports are found: it is sent
    needs = {**packages_needed(), "files": {key: (named[key], looks[key]) for key in files}}
    return NodeFiles(needs, files, ray.put(shards_sent(config, shards)))


def packages_needed() -> dict[str, Any]:
    """What a node has to have, as it is here: versions of packages, and this one by its sources."""
    versions = {name: v for name in SAME if (v := _version(name))}
    return {"versions": versions, "package": sources_digest(_HOME)}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _packed(key: str, path: Path) -> tuple[str, bytes]:
    """A file, a folder, or a plug-in with what it imports, as a zip file; and its name there."""
    buffer = io.BytesIO()
    if key == "plugin":
        files, roots = files_of(str(path)), roots_of(str(path))
    else:
        files, roots = [p for p in path.rglob("*") if p.is_file()] or [path], [path.parent]
    # What is imported by one name from one root, and by another from another, is there by both.
    names = {str(f.relative_to(r)): f for r in roots for f in files if f.is_relative_to(r)}
    with zipfile.ZipFile(buffer, "w") as file:
        for name, each in names.items():
            if "__pycache__" not in each.parts:
                file.write(each, name)
    return path.name, buffer.getvalue()
