"""Several machines on one, for tests and benchmarks: Ray nodes that can be unplugged.

A node is a mount and pid namespace, which needs root: it has its own folder of Ray, nothing in the
folders that are hidden from it, and when its first process is killed, all of it is gone at once.
The head has no processors, so all work is on nodes, one processor each unless more are asked for.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedprune.engines.ray.starting import note_path

RAY = Path(sys.executable).with_name("ray")
NAMESPACES = ["unshare", "-m", "-p", "-f", "--mount-proc", "--kill-child"]
PLUG = "plug"


def impossible() -> str:
    """Why this machine cannot be several; "" where it can."""
    if not RAY.exists():
        return "ray is not installed"
    try:
        test = [*NAMESPACES, "sh", "-c", "mount -t tmpfs none /mnt"]
        done = subprocess.run(test, capture_output=True, text=True, timeout=20)
    except OSError as error:
        return f"no namespaces: {error}"
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else ""


@dataclass
class Machines:
    """A head, and the nodes that have joined it.

    Attributes:
        address: of the head.
        place: of their logs.
        cpus: processors of each node.
        nodes: their first processes, by their number, in the order in which they joined.
    """

    address: str
    place: Path
    cpus: int = 1
    nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    joined: int = 0

    def join(self, hide: Sequence[Path] = (), **environment: str) -> None:
        """Start one more node, without what is in some folders; it is there in some seconds."""
        mounts = [f"mount -t tmpfs none {shlex.quote(str(d))}" for d in (note_path().parent, *hide)]
        start = ["start", f"--address={self.address}", f"--num-cpus={self.cpus}"]
        start += ["--resources", json.dumps({f"{PLUG}{self.joined}": 1})]
        script = " && ".join([*mounts, f"exec {shlex.join(_ray(*start))}"])
        log = self.place / f"node{self.joined}"
        self.nodes[self.joined] = _started([*NAMESPACES, "sh", "-c", script], log, environment)
        self.joined += 1

    def unplug(self, number: int) -> None:
        """Take a node away."""
        gone = self.nodes.pop(number)
        gone.kill()
        gone.wait()


def number_of(node: str) -> int:
    """The number of what Ray calls so; -1 for one that Ray knows to be gone."""
    import ray

    has = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node)
    return next((int(name.removeprefix(PLUG)) for name in has if name.startswith(PLUG)), -1)


def _ray(*arguments: str) -> list[str]:
    """Ray's command, without processes of Ray's that nobody here wants anything of."""
    unused = ("--no-monitor", "--include-log-monitor=false", "--disable-usage-stats")
    return [str(RAY), *arguments, *unused, "--block"]


def _started(command: list[str], log: Path, more: dict[str, str]) -> subprocess.Popen[bytes]:
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    # Ray would kill workers where the machine's memory is nearly full, whoever took it.
    own["RAY_memory_monitor_refresh_ms"] = "0"
    with log.open("w") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd="/", env={**own, **more}
        )


@contextmanager
def machines(nodes: int, hide: Sequence[Path] = (), cpus: int = 1) -> Iterator[Machines]:
    """Within the block a head and so many nodes, which may still be on their way."""
    import ray

    note = note_path()
    note.parent.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        start = ["start", "--head", "--num-cpus=0", f"--port={port}", "--include-dashboard=false"]
        head = _started(_ray(*start), Path(place) / "head", {})
        found = Machines(f"{ray.util.get_node_ip_address()}:{port}", Path(place), cpus)
        try:
            _wait_for(head, port)
            for _ in range(nodes):
                found.join(hide)
            yield found
        finally:
            for process in [*found.nodes.values(), head]:
                process.send_signal(signal.SIGTERM if process is head else signal.SIGKILL)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
            if note.is_file() and note.read_text().strip() == found.address:
                note.unlink()


def _wait_for(head: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and head.poll() is None:
        with socket.socket() as s:
            if not s.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    raise RuntimeError("no head of a Ray cluster came up")


@contextmanager
def unplugging(grid: Any, made: Machines, phases: Sequence[str]) -> Iterator[None]:
    """Within the block, for each phase in turn, the node that is given such work first goes then.

    Another one joins each time. Work may be given to a node that went, before Ray knows it: then
    the one goes that gets such work next.
    """
    pool, give, left = grid.pool, grid.pool.give, list(phases)

    def given(member: Any, job: Any) -> None:
        give(member, job)
        kind = job.message.metadata.message_type.rpartition(".")[2]
        if left and kind == left[0] and (number := number_of(member.node.id)) in made.nodes:
            left.pop(0)
            made.join()
            made.unplug(number)

    pool.give = given
    try:
        yield
    finally:
        pool.give = give
    assert not left


def workers_of(run: int) -> set[int]:
    """Ray's client workers among the descendants of a process.

    Ray rewrites a worker's title at each call, so that one look may miss one that works.
    """
    import psutil  # which Ray brings

    found = set[int]()
    for process in psutil.Process(run).children(recursive=True):
        with suppress(psutil.Error):  # it ended while we looked
            found |= {process.pid} if "ray::Worker" in " ".join(process.cmdline()) else set()
    return found
