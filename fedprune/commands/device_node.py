"""``fedprune devices node``: a SuperNode, checked before Flower starts it."""

from __future__ import annotations

import os
import re
import signal
import ssl
import time
import tomllib
import urllib.request
from argparse import Namespace
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from fedprune.commands.certificates import AUTHORITY, check_there
from fedprune.commands.programs import become, check_address
from fedprune.engines.flower.clocks import CLOCK, clock_off
from fedprune.engines.flower.node_config import device_of
from fedprune.options.refusal import ConfigError, Refused

_PAIR = re.compile(r"""\s*([^\s=]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"']+)(?=\s|$)""")


def become_node(given: Namespace) -> NoReturn:
    """Become the SuperNode of a device, once its keys and its data are there."""
    check_address(given)
    folder, config = Path(given.folder), node_config_in(given.config)
    try:
        here = device_of(config)
    except Refused as refused:
        raise ConfigError(f"config: {refused}") from None
    if not Path(here.data).exists():
        allowed = "a file or folder that is there"
        raise ConfigError(f"config: data={here.data!r}: nothing there; allowed: {allowed}")
    how, more = ["--insecure"], {}
    if not given.insecure:
        (ca,) = check_there(folder, [f"{AUTHORITY}.crt"], "--names SERVER, on the server: copy it")
        name = str(here.partitions[0])
        (key,) = check_there(folder, [name], f"--keys {name}")
        how = ["--root-certificates", ca, "--auth-supernode-private-key", key]
        if ahead := await_clock(given.superlink, ca):
            more[CLOCK] = f"{ahead:.0f} {time.time():.0f}"
    for pid in end_orphans(given.port):
        print(f"ended process {pid}: a flower-superexec whose SuperNode is gone", flush=True)
    for pid in nodes_with(here.data):
        what = (
            f"process {pid}, a SuperNode, has the same data: in one run only one of them is asked"
        )
        print(f"data={here.data!r}: {what}", flush=True)
    become(
        "flower-supernode",
        *how,
        *("--superlink", given.superlink, "--port", str(given.port)),
        *("--node-config", given.config),
        more=more,
    )


_AHEAD, _BEHIND = 5, 300
"""Seconds that Flower allows a registered device's clock to differ from its SuperLink's."""


_LOOK_AGAIN = 15.0  # Seconds between looks at a clock that is wrong


def await_clock(address: str, ca: str) -> float:
    """Wait until the SuperLink takes this machine's clock; by how many seconds it was ahead.

    Flower refuses signatures of another time, and its node then ends, or ends at once, without a
    word of why. 0: the clock is right, or nobody knows.
    """
    ahead, allowed = clock_ahead(address, ca), f"{_AHEAD} s ahead to {_BEHIND} s behind"
    if ahead is None or taken(ahead):
        return 0.0
    off = clock_off(ahead)
    print(f"clock: {off}, which refuses this device; allowed: {allowed}; waiting", flush=True)
    while (now := clock_ahead(address, ca)) is None or not taken(now):
        time.sleep(_LOOK_AGAIN)
    print("clock: right now", flush=True)
    return ahead


def taken(ahead: float) -> bool:
    """Whether a SuperLink takes a clock that is so many seconds ahead."""
    return -_BEHIND <= ahead <= _AHEAD


def clock_ahead(address: str, ca: str) -> float | None:
    """By how many seconds this machine's clock is ahead of the SuperLink's; None: nobody knows."""
    try:
        known = ssl.create_default_context(cafile=ca)
        with urllib.request.urlopen(f"https://{address}/health", timeout=5, context=known) as reply:
            there = parsedate_to_datetime(reply.headers["Date"]).timestamp()
    except (OSError, HTTPException, TypeError, ValueError):
        return None
    return time.time() - there


def nodes_with(data: str) -> list[int]:
    """SuperNodes of this user and machine that have this data; one may be of another server."""
    found = []
    for pid, words in commands_of("flower-supernode"):
        try:
            other = node_config_in(dict(pairwise(words)).get("--node-config", ""))["data"]
            found += [pid] if Path(str(other)).samefile(data) else []
        except (ConfigError, OSError):  # it has no data, or has them no longer
            continue
    return found


def node_config_in(text: str) -> dict[str, Any]:
    """A node config as Flower reads it: ``key=value``, one after the other, values in TOML.

    Raises:
        ConfigError: it is none, or no device's.
    """
    pairs, left = _PAIR.findall(text), _PAIR.sub("", text)
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


def end_orphans(port: int) -> list[int]:
    """End a ``flower-superexec`` whose SuperNode, at a port of this machine, is gone.

    It would hold on to the port's next SuperNode. Only one of this user is ended.

    Returns:
        The processes that were told to end.
    """
    ended = []
    for pid, words in commands_of("flower-superexec"):
        said = dict(pairwise(words))
        at, parent = said.get("--runtime-api-address", ""), said.get("--parent-pid", "")
        if at.rpartition(":")[2] == str(port) and parent.isdigit() and not _there(int(parent)):
            os.kill(pid, signal.SIGTERM)
            ended.append(pid)
    return ended


def commands_of(program: str) -> list[tuple[int, list[str]]]:
    """Processes of this user that run a program, and their words, where the system lists them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid == os.getuid():
                words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(Path(word).name == program for word in words[:2]):
                    found.append((int(path.name), words))
        except OSError:  # it has ended meanwhile
            continue
    return found


def _there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
