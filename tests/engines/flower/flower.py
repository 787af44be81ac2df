"""Flower's own programs on 127.0.0.1, in a home of their own, stopped by their ids."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import forking

ROOT = Path(__file__).resolve().parents[3]


class Flower:
    """Starts Flower's programs; `stop` ends them and what they started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.started: list[subprocess.Popen[bytes]] = []
        self.forking = folder / "forking"
        scripts = sysconfig.get_path("scripts")
        self.environment = {
            **os.environ,
            **forking.environment(self.forking),
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_ADDRESS": "local",  # never the cluster that a note on this machine names
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        }

    def start(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program in a group of its own; what it prints is in `log`."""
        with (self.folder / log).open("wb") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def superlink(self, trust: Path, address: str = "") -> tuple[str, subprocess.Popen[bytes]]:
        """Start a SuperLink with the certificate of a folder; its address, once it answers."""
        at = address or f"127.0.0.1:{free_port()}"
        if not self.forking.exists():
            self.start("forking.log", sys.executable, "-P", forking.__file__, str(self.forking))
        given = ("devices", "superlink", str(trust), "--port", at.rpartition(":")[2])
        process = self.start("superlink.log", "fedprune", *given)
        wait_until(lambda: answers(f"https://{at}/health", trust), 60, "the SuperLink")
        return at, process

    def supernode(
        self, address: str, partition: int | str, data: Path, trust: Path
    ) -> subprocess.Popen[bytes]:
        """Start a device that has its own data and key, or a site of several: "0,1"."""
        return self.start(
            f"device-{partition}.log",
            *("fedprune", "devices", "node", str(trust), "--superlink", address),
            *("--port", str(free_port())),
            *("--config", f'partition-id={json.dumps(partition)} data="{data}"'),
        )

    def devices(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `fedprune devices` to its end."""
        return self._ended("fedprune", "devices", *arguments)

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Flower's command line to its end."""
        return self._ended("flwr", *arguments)

    def _ended(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment,
            check=False,
            timeout=1200,
        )

    def log(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a program and what it started, without a chance to say goodbye."""
        os.killpg(process.pid, signal.SIGKILL)
        for pid in forking.forks_of(self.forking, process.pid):
            send(pid, signal.SIGKILL)
        process.wait(10)
        self.started.remove(process)

    def stop(self) -> None:
        """End everything that runs with this home: nobody else's does."""
        for process in self.started:
            process.terminate()
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 10
            while (left := self.running()) and time.monotonic() < deadline:
                for pid in left:
                    send(pid, number)
                time.sleep(0.5)
        for process in self.started:
            process.wait(10)

    def running(self) -> list[int]:
        """Processes that have this home in their environment."""
        mark = f"FLWR_HOME={self.home}".encode()
        return [pid for pid in pids() if mark in environment_of(pid) and pid != os.getpid()]


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def environment_of(pid: int) -> list[bytes]:
    """A process's environment; nothing for one that is gone, is not ours or is a zombie."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(address: str, trust: Path | None = None) -> bool:
    """Whether it does, to one who trusts the authority of a folder."""
    known = ssl.create_default_context(cafile=trust / "ca.crt") if trust else None
    try:
        with urllib.request.urlopen(address, timeout=1, context=known) as reply:
            return bool(reply.status == 200)
    except (OSError, HTTPException):
        return False


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)
