"""``fedprune devices``: Flower's own commands for devices, printed and then run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import tomllib
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fedprune.commands.certificates import AUTHORITY, SERVER, check_there, make_certificates
from fedprune.commands.programs import become, check_address, check_here, run_shown, with_path
from fedprune.options.refusal import ConfigError
from fedprune.runtime.connection import CONNECTION
from fedprune.runtime.ending import FAILED


def run(given: Namespace) -> int:
    """Do what was asked for; see `fedprune.commands.device_options`."""
    what: Mapping[str, Callable[[Namespace], int]] = {
        "certificates": make_certificates,
        "superlink": _superlink,
        "node": _node,
        "register": _register,
        "run": _run,
        "status": _status,
    }
    return what[given.what](given)


def _node(given: Namespace) -> NoReturn:
    from fedprune.commands.device_node import become_node  # brings torch, which takes seconds

    become_node(given)


def _status(given: Namespace) -> int:
    from fedprune.commands.device_status import status_of  # likewise

    return status_of(Path(given.folder))


def _superlink(given: Namespace) -> NoReturn:
    folder = Path(given.folder)
    if given.insecure:
        check_here("host", given.host)
        folder.mkdir(parents=True, exist_ok=True)
        how = ["--insecure"]
    else:
        files = [f"{AUTHORITY}.crt", f"{SERVER}.crt", f"{SERVER}.key"]
        ca, certificate, key = check_there(folder, files, "--names SERVER")
        how = ["--ssl-ca-certfile", ca, "--ssl-certfile", certificate, "--ssl-keyfile", key]
        how += ["--enable-supernode-auth"]
    become(
        "flower-superlink",
        *how,
        *("--host", given.host, "--port", str(given.port)),
        *("--database", database_at(folder / "superlink.db")),
        "--disable-runtime-dependency-installation",
    )


BUSY = 600
"""Seconds that the SuperLink waits for its database; 5 are too few while large answers are put in,
and a node that is told so (HTTP 500) is lost."""


def database_at(file: Path) -> str:
    """The address of a file for SQLAlchemy, with what only an address says."""
    return str(file) if "?" in str(file) else f"sqlite:///{file.absolute()}?timeout={BUSY}"


def _register(given: Namespace) -> int:
    key = Path(given.key)
    if not key.is_file() or not key.read_text(errors="replace").startswith("ecdsa-sha2-"):
        allowed = "the .pub of `devices certificates --keys`, in the format of OpenSSH"
        raise ConfigError(f"key={str(key)!r}: no public key; allowed: {allowed}")
    connect(given)
    named = ["--name", given.name] if given.name else []
    return run_shown(["flwr", "supernode", "register", *named, str(key), CONNECTION])[0]


def _run(given: Namespace) -> int:
    """Flower ends with 0 where a run failed, or where it lost its log; this does not."""
    app = Path(given.app)
    if not (app / "pyproject.toml").is_file():
        raise ConfigError(f"app={given.app!r}: no pyproject.toml there; allowed: a Flower app")
    connect(given)
    put = ["flwr", "run", given.app, CONNECTION, "--stream", "--run-config", given.config]
    code, lines = run_shown(put)
    number = next((m[1] for m in map(re.compile(r"started run (\d+)").search, lines) if m), "")
    if code or not number:
        return FAILED
    ended = _ended(number)
    if not ended:
        print(f"run {number}: its SuperLink does not answer any more")
        return FAILED
    status, why = ended["status"], ended.get("status-details")
    done = status == "finished:completed"
    if not done:
        print("how to go on: fedprune devices status FOLDER, with the folder of its line `results`")
    print(f"run {number}: {status}" + (f": {why}" if why else ""))
    return 0 if done else FAILED


LOOK_AGAIN = 15.0
"""Seconds between looks at a run that goes on while nothing comes of its log any more."""


def _ended(number: str) -> dict[str, str]:
    """What Flower says of a run that has ended; nothing where it does not answer."""
    listed = ["flwr", "ls", CONNECTION, "--run-id", number, "--format", "json"]
    said = False
    while True:
        looked = subprocess.run(with_path(listed), capture_output=True, text=True, check=False)
        try:
            one: dict[str, str] = json.loads(looked.stdout)["runs"][0]
        except (ValueError, KeyError, IndexError):
            return {}
        if one["status"].startswith("finished"):
            return one
        if not said:
            said = True
            print(f"run {number}: {one['status']}; Flower has ended its log here", flush=True)
        time.sleep(LOOK_AGAIN)


def connect(given: Namespace) -> None:
    """Give the SuperLink its name in Flower's configuration, unless it has it.

    Raises:
        ConfigError: the name is another SuperLink's there.
    """
    check_address(given)
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
