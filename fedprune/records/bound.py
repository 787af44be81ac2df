"""What a run began with, so that ``--resume`` goes on with the same: else it is another run.

Kept beside the checkpoints. Digests find differences; they do not say who made them.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor

from fedprune.codec.coded_file import CODED_NAME
from fedprune.codec.frozen import put_together
from fedprune.options.plugins import source_of
from fedprune.runtime.files import read_verified, write_verified
from fedprune.runtime.json_text import read_object

NAME = "began.json"

_PACKAGES = ("fedprune", "torch", "numpy", "transformers")  # Those that bits depend on

ENGINE = "engine"
"""The one thing that may differ unasked: every engine has the same bits. It is written down."""

RESUMABLE = {"engine", "workers", "gpus", "ray_address", "timeout", "deadline", "verbose", "track"}
"""Keys that may change on --resume: no bit of a result depends on them."""

_ANYWAY = "anyway"


@dataclass(frozen=True)
class Going:
    """How a run goes on."""

    resume: bool = False  # from its checkpoints; False: it begins
    anyway: bool = False  # although it is not with what it began with
    # gives the digest of the shards, where this process has them
    data: Callable[[], str] = lambda: ""
    # the model's weights before round one, which checkpoints may be about
    held: Mapping[str, Tensor] = field(default_factory=dict)


Began = dict[str, str]
"""What a run began with: the digests of its configuration, data and plug-in, and versions."""


def began_with(
    config_text: bytes,
    plugin: str,
    data: str,
    models: Mapping[str, str] | None = None,
    profiles: str = "",
) -> Began:
    """What a run that begins now begins with.

    `data`: digest of the shards, "" where they are not here. `models`: folders of runs that this
    one begins with or learns from, by option; "": none.
    """
    own = hashlib.sha256(source_of(plugin)).hexdigest() if plugin else ""
    found = {"config.toml": hashlib.sha256(config_text).hexdigest(), "data": data, "plugin": own}
    found |= {key: _model_digest(folder) for key, folder in (models or {}).items()}
    if profiles:
        found["profiles"] = hashlib.sha256(Path(profiles).read_bytes()).hexdigest()
    return found | {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES}


def _model_digest(folder: str) -> str:
    """Of the model that a run left in its folder, or of its checkpoint; "" without either."""
    path = Path(folder) / CODED_NAME
    path = path if path.is_file() else Path(folder) / "checkpoint" / "pruned.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if folder and path.is_file() else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def keep_began(folder: Path, began: Began) -> None:
    """Write what a run began with into its folder of checkpoints."""
    write_verified(folder / "checkpoint" / NAME, json.dumps(began).encode())


def gone_on_with(folder: Path, now: Began, *, anyway: bool) -> list[str]:
    """What differs from what the run began with, this time and the times before.

    `anyway`: go on all the same, and write the differences down.

    Returns:
        A line for each difference that was gone on with, another engine too.

    Raises:
        ValueError: something differs, or nothing says what the run began with.
    """
    path = folder / "checkpoint" / NAME
    if not path.is_file():
        raise ValueError(f"{NAME} is gone")
    before, told = _read(path)
    fresh = [line for line in _differences(before, now) if line not in told]
    refused = [line for line in fresh if not line.startswith(f"{ENGINE} is ")]
    if refused and not anyway:
        raise ValueError("; ".join(refused))
    if fresh:
        content = {**before, _ANYWAY: [*told, *fresh]}
        write_verified(path, json.dumps(content).encode())
    return [*told, *fresh]


def rounds_added(folder: Path, digest: str, line: str) -> None:
    """Write down that a run has more rounds from now on.

    `line`: what differs, where what was played would have been otherwise; "": nothing.
    """
    path = folder / "checkpoint" / NAME
    before, told = _read(path)
    lines = [*told, *([line] if line and line not in told else [])]
    content = {**before, "config.toml": digest, **({_ANYWAY: lines} if lines else {})}
    write_verified(path, json.dumps(content).encode())


def began_in(folder: Path) -> Began:
    """What the run in a folder began with; nothing where that is gone, or of another version."""
    try:
        return _read(folder / "checkpoint" / NAME)[0]
    except (OSError, ValueError):
        return {}


def _read(path: Path) -> tuple[Began, list[str]]:
    content = read_verified(path)
    try:
        said = read_object(content)
        told: tuple[str, ...] = put_together(tuple[str, ...], said.pop(_ANYWAY, []), {})
        before: Began = put_together(Began, [list(pair) for pair in said.items()], {})
    except ValueError as error:  # sound bytes of something else
        raise ValueError(f"{path.name}: of another version of fedprune: {error}"[:300]) from None
    return before, list(told)


def _differences(before: Mapping[str, str], now: Began) -> list[str]:
    names = {"data": "the data", "plugin": "the plug-in, or what it imports,"}
    names |= {"profiles": "the file of --profiles"}
    names |= {key: f"the model of --{key}" for key in ("init", "teacher")}
    return [
        f"{names.get(key, key)} is not as it was when the run began"
        if len(value) == len(now[key]) == 64  # digests say nothing to who reads them
        else f"{key} is {now[key] or 'none'}, was {value or 'none'} when the run began"
        for key, value in before.items()
        if value != now.get(key, value) and not (key == "data" and "" in (value, now[key]))
    ]
