"""A command of fedprune as a process on a node of a cluster.

It is sent there by value, as `fedprune.engines.ray.worker` is: a node that lacks the package says
so in words of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fedprune.engines.ray.worker import PACKAGE, Worker

_POLL = 0.1
"""Seconds between two looks at the process."""

_PATIENCE = 25.0
"""Seconds in which a process that is told to end writes its checkpoint."""


def unfit(needs: dict[str, Any], sign: str) -> str:
    """Why no command can be run here; "" where one can.

    Of `needs` see `Worker`, without files. The driver wrote a file, `sign`, where the results go:
    who sees it sees the same folder.
    """
    lacking, wrong, _ = Worker(needs, "").lacks()
    if lacking or wrong:
        wrong += [f"another {PACKAGE} than the driver's, or none"] * bool(lacking)
        return f"node {_name()}: {'; '.join(wrong)}; allowed: the same packages on every node"
    folder = Path(sign).parent
    if Path(sign).is_file() and os.access(folder, os.W_OK):
        return ""
    wrong = ["cannot be written to" if Path(sign).is_file() else "is not the driver's"]
    allowed = "--out in a folder that all nodes share"
    return f"node {_name()}: out={str(folder)!r} {wrong[0]} there; allowed: {allowed}"


def run_here(words: list[str], log: str, home: str, needs: dict[str, Any], sign: str) -> int | str:
    """Run a command to its end; where this task is cancelled, it is interrupted and waited for.

    `words` are those of the command, without the program's name; its output is put behind the file
    `log`. It is given in the folder `home`, if this node has it. Of `needs` and `sign` see `unfit`.

    Returns:
        Its exit code, or why it was not begun.
    """
    if why := unfit(needs, sign):
        return why
    # Ray hides the cards from a task that asks for none, unless a node is told otherwise.
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "CUDA_VISIBLE_DEVICES": "",
    }
    process: subprocess.Popen[bytes] | None = None
    try:
        with Path(log).open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", PACKAGE, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                cwd=home if Path(home).is_dir() else None,
                preexec_fn=_ends_with_its_parent,
            )
        while process.poll() is None:  # an interruption by Ray wakes no call into the kernel
            time.sleep(_POLL)
        return process.returncode
    except OSError as error:
        return f"node {_name()}: {error}; allowed: --out in a folder that all nodes share"
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    until = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < until:
        time.sleep(_POLL)
    process.kill()
    process.wait()


def _ends_with_its_parent() -> None:
    """Be interrupted when Ray's worker is gone: with the driver, or for want of memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, of prctl(2)


def _name() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
