"""``fedprune devices``: Flower's own commands for devices, printed and then run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedprune.commands.certificates import AUTHORITY, SERVER, check_there, make_certificates, show
from fedprune.commands.device_status import status_of
from fedprune.commands.orphans import end_orphans
from fedprune.engines.flower.node_config import device_of
from fedprune.options.refusal import ConfigError, Refused
from fedprune.records.repeating import CONNECTION
from fedprune.runtime.ending import FAILED

_SETTINGS = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
"""For Flower's programs: without the first every run installs the app's dependencies again."""

_HERE = ("127.0.0.1", "localhost", "::1")


def run(given: Namespace) -> int:
    """Do what was asked for; see `fedprune.commands.device_options`."""
    what: Mapping[str, Callable[[Namespace], int]] = {
        "certificates": make_certificates,
        "superlink": _superlink,
        "node": _node,
        "register": _register,
        "run": _run,
        "status": lambda given: status_of(Path(given.folder)),
    }
    return what[given.what](given)


def _superlink(given: Namespace) -> NoReturn:
    folder = Path(given.folder)
    if given.insecure:
        _check_here("host", given.host)
        folder.mkdir(parents=True, exist_ok=True)
        how = ["--insecure"]
    else:
        files = [f"{AUTHORITY}.crt", f"{SERVER}.crt", f"{SERVER}.key"]
        ca, certificate, key = check_there(folder, files, "--names SERVER")
        how = ["--ssl-ca-certfile", ca, "--ssl-certfile", certificate, "--ssl-keyfile", key]
        how += ["--enable-supernode-auth"]
    _become(
        "flower-superlink",
        *how,
        *("--host", given.host, "--port", str(given.port)),
        *("--database", str(folder / "superlink.db")),
        "--disable-runtime-dependency-installation",
    )


def _node(given: Namespace) -> NoReturn:
    folder, config = Path(given.folder), node_config_in(given.config)
    _check_address(given)
    try:
        here = device_of(config)
    except Refused as refused:
        raise ConfigError(f"config: {refused}") from None
    if not Path(here.data).exists():
        allowed = "a file or folder that is there"
        raise ConfigError(f"config: data={here.data!r}: nothing there; allowed: {allowed}")
    how = ["--insecure"]
    if not given.insecure:
        (ca,) = check_there(folder, [f"{AUTHORITY}.crt"], "--names SERVER, on the server: copy it")
        name = str(here.partitions[0])
        (key,) = check_there(folder, [name], f"--keys {name}")
        how = ["--root-certificates", ca, "--auth-supernode-private-key", key]
    for pid in end_orphans(given.port):
        print(f"ended process {pid}: a flower-superexec whose SuperNode is gone", flush=True)
    _become(
        "flower-supernode",
        *how,
        *("--superlink", given.superlink, "--port", str(given.port)),
        *("--node-config", given.config),
    )


def node_config_in(text: str) -> dict[str, Any]:
    """A node config as Flower reads it: ``key=value``, one after the other, values in TOML.

    Raises:
        ConfigError: it is none, or no device's.
    """
    pairs = re.findall(r"""\s*([^\s=]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"']+)(?=\s|$)""", text)
    left = re.sub(r"""\s*([^\s=]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"']+)(?=\s|$)""", "", text)
    try:
        found = tomllib.loads("\n".join(f"{key}={value}" for key, value in pairs))
    except tomllib.TOMLDecodeError as error:
        left = str(error)
    if left.strip():
        allowed = 'key=value, texts in double quotes: partition-id=0 data="/data"'
        raise ConfigError(f"config={text!r}: {left.strip()}: not understood; allowed: {allowed}")
    if "data" not in found:
        raise ConfigError(f'config={text!r}: no data; allowed: partition-id=0 data="/data"')
    return found


def _register(given: Namespace) -> int:
    key = Path(given.key)
    if not key.is_file() or not key.read_text(errors="replace").startswith("ecdsa-sha2-"):
        allowed = "the .pub of `devices certificates --keys`, in the format of OpenSSH"
        raise ConfigError(f"key={str(key)!r}: no public key; allowed: {allowed}")
    connect(given)
    named = ["--name", given.name] if given.name else []
    return _told(["flwr", "supernode", "register", *named, str(key), CONNECTION])[0]


def _run(given: Namespace) -> int:
    """Flower's own code is 0 for a run that failed: this one's is not."""
    app = Path(given.app)
    if not (app / "pyproject.toml").is_file():
        raise ConfigError(f"app={given.app!r}: no pyproject.toml there; allowed: a Flower app")
    connect(given)
    put = ["flwr", "run", given.app, CONNECTION, "--stream", "--run-config", given.config]
    code, lines = _told(put)
    number = next((m[1] for m in map(re.compile(r"started run (\d+)").search, lines) if m), "")
    if code or not number:
        return FAILED
    listed = ["flwr", "ls", CONNECTION, "--run-id", number, "--format", "json"]
    ended = subprocess.run(_found(listed), capture_output=True, text=True, check=False)
    try:
        (one,) = json.loads(ended.stdout)["runs"]
    except (ValueError, KeyError):
        print(f"run {number}: its SuperLink does not answer any more")
        return FAILED
    print(f"run {number}: {one['status']}")
    return 0 if one["status"] == "finished:completed" else FAILED


def connect(given: Namespace) -> None:
    """Give the SuperLink its name in Flower's configuration, unless it has it.

    Raises:
        ConfigError: the name is another SuperLink's there.
    """
    _check_address(given)
    entry: dict[str, Any] = {"address": given.superlink, "insecure": True}
    if not given.insecure:
        (ca,) = check_there(Path(given.folder), [f"{AUTHORITY}.crt"], "--names SERVER")
        entry = {"address": given.superlink, "root-certificates": ca}
    path = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr") / "config.toml"
    try:
        text = path.read_text() if path.is_file() else f'[superlink]\ndefault = "{CONNECTION}"\n'
        known = tomllib.loads(text).get("superlink", {}).get(CONNECTION)
    except (tomllib.TOMLDecodeError, AttributeError) as error:
        raise ConfigError(f"{path}: {error}; allowed: Flower's configuration") from None
    if known == entry:
        return
    if known is not None:
        raise ConfigError(
            f"superlink={given.superlink!r}: [superlink.{CONNECTION}] of {path} is {known}; "
            "allowed: the same, or another FLWR_HOME"
        )
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text.rstrip()}\n\n[superlink.{CONNECTION}]\n{lines}")
    print(f"added to {path}:\n[superlink.{CONNECTION}]\n{lines}", flush=True)


def _check_address(given: Namespace) -> None:
    host, _, port = given.superlink.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        allowed = "HOST:PORT, as server.example:8000"
        raise ConfigError(f"superlink={given.superlink!r}: no address; allowed: {allowed}")
    if given.insecure:
        _check_here("superlink", host)


def _check_here(key: str, host: str) -> None:
    if host not in _HERE:
        raise ConfigError(f"{key}={host!r}: --insecure elsewhere; allowed: {', '.join(_HERE)}")


def _found(command: Sequence[str]) -> list[str]:
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
    return {**_SETTINGS, **os.environ, "PATH": path}


def _become(*command: str) -> NoReturn:
    """Print a command and become it, so that who started this one can end it."""
    found = _found(command)
    show(command, _SETTINGS)
    os.execve(found[0], found, _environment())


def _told(command: Sequence[str]) -> tuple[int, list[str]]:
    """Print a command, run it, show its lines as they come, and give back its code and them."""
    show(command, _SETTINGS)
    lines = []
    with subprocess.Popen(
        _found(command), stdout=subprocess.PIPE, text=True, errors="replace", env=_environment()
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()
    return process.returncode, lines
