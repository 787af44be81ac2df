"""Flower's own programs: found, printed, and run or become."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import NoReturn

from fedprune.commands.certificates import show
from fedprune.options.refusal import ConfigError

SETTINGS = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
"""For Flower's programs: without the first every run installs the app's dependencies again."""

_HERE = ("127.0.0.1", "localhost", "::1")


def check_address(given: Namespace) -> None:
    """Refuse what is no address of a SuperLink, or may not be reached without TLS."""
    host, _, port = given.superlink.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        allowed = "HOST:PORT, as server.example:8000"
        raise ConfigError(f"superlink={given.superlink!r}: no address; allowed: {allowed}")
    if given.insecure:
        check_here("superlink", host)


def check_here(key: str, host: str) -> None:
    """Refuse another machine where connections are not encrypted."""
    if host not in _HERE:
        raise ConfigError(f"{key}={host!r}: --insecure elsewhere; allowed: {', '.join(_HERE)}")


def with_path(command: Sequence[str]) -> list[str]:
    """The command with the path of its program, which is where this Python's are."""
    there = sysconfig.get_path("scripts")
    program = shutil.which(command[0], path=f"{there}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        allowed = "pip install 'fedprune[flower]'"
        raise ConfigError(f"{command[0]}: no such program here; allowed: {allowed}")
    return [program, *command[1:]]


def _environment() -> dict[str, str]:
    there = sysconfig.get_path("scripts")  # Flower starts programs of its own by their names
    path = f"{there}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**SETTINGS, **os.environ, "PATH": path}


def become(*command: str, more: Mapping[str, str] | None = None) -> NoReturn:
    """Print a command and become it, so that who started this one can end it."""
    found, own = with_path(command), dict(more or {})
    show(command, {**SETTINGS, **own})
    os.execve(found[0], found, {**_environment(), **own})


def run_shown(command: Sequence[str]) -> tuple[int, list[str]]:
    """Print a command, run it, show its lines as they come, and give back its code and them."""
    show(command, SETTINGS)
    lines = []
    with subprocess.Popen(
        with_path(command), stdout=subprocess.PIPE, text=True, errors="replace", env=_environment()
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()
    return process.returncode, lines
