"""How a run is repeated, and gone on with: as a command."""

from __future__ import annotations

import shlex
from pathlib import Path

from fedprune.config import RunConfig
from fedprune.options.values import for_flower
from fedprune.protocol.port import Port
from fedprune.records.folder import CONFIG_NAME
from fedprune.runtime.connection import CONNECTION


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
