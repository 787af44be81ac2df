"""Where a result comes from (when, versions, code, data, machine), and how a run is repeated."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from fedprune.config import RunConfig
from fedprune.options.values import for_flower
from fedprune.protocol.port import Port
from fedprune.records.bound import Began
from fedprune.records.folder import CONFIG_NAME
from fedprune.runtime.connection import CONNECTION

_HOME = Path(__file__).parents[2]  # The repository, where the package was not installed elsewhere
_TIMEOUT = 10  # Seconds that git may take


def provenance_of(began: Began) -> dict[str, str]:
    """What a summary says of where its run comes from, besides its configuration and command.

    Returns:
        ``date`` (UTC, when the summary was written), ``commit`` of the repository that the code
        lies in with "+" behind it where files differ from it ("" without one), ``machine`` and
        ``processors``, and the versions and digests that are known.
    """
    said = {key: value for key, value in began.items() if value and key not in _ELSEWHERE}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processors": str(os.cpu_count() or ""),
        **said,
    }


_ELSEWHERE = {"config.toml", "engine"}  # What a summary or the folder says in other places


def _commit() -> str:
    if not (_HOME / ".git").exists():
        return ""
    found = _git("rev-parse", "HEAD")
    return f"{found}+" if found and _git("status", "--porcelain", "--untracked-files=no") else found


def _git(*arguments: str) -> str:
    """What git prints; "" where there is none, or it refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_HOME), *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commands_for(config: RunConfig, folder: Path, port: Port) -> dict[str, str]:
    """How to repeat a run and how to go on with it.

    Devices meet at the SuperLink that Flower's configuration calls `CONNECTION`: so do the
    documentation and ``fedprune devices run``.
    """
    if config.engine == "flower":
        where = [CONNECTION] * port.own_data()
        where += ["--federation", port.federation] * bool(port.federation)
        put = ["flwr", "run", ".", *where, "--stream", "--run-config"]
        again, on = as_run_config(config), f"resume={for_flower(str(folder))}"
        return {"command": shlex.join([*put, again]), "resume": shlex.join([*put, on])}
    code = ["--plugin", config.plugin] * bool(config.plugin)  # a file does not choose code
    anew = ["--config", str(folder / CONFIG_NAME), *code, "--out", f"{folder}-again"]
    return {
        "command": shlex.join(["fedprune", "run", *anew]),
        "resume": shlex.join(["fedprune", "run", "--resume", str(folder), *code]),
    }


def as_run_config(config: RunConfig) -> str:
    """The configuration in the form of Flower's ``--run-config``: the keys that were given."""
    given = {"task": config.task} | config.given
    return " ".join(
        f"{key.replace('_', '-')}={for_flower(value)}"
        for key, value in given.items()
        if key not in {"engine", "out"} and value not in ("", None)
    )
