"""What a SuperNode that was killed leaves behind on its device."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path


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
