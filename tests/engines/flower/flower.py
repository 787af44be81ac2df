"""Flower's own programs on 127.0.0.1, in a home of their own, stopped by their ids."""

import io
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
from contextlib import chdir, redirect_stdout, suppress
from http.client import HTTPException
from pathlib import Path
from unittest.mock import patch

import forking

from fedprune.commands.main import main

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
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        }

    def start(self, log, *command, more=None):
        """Start a program in a group of its own; what it prints is in `log`."""
        with (self.folder / log).open("wb") as file:
            process = subprocess.Popen(
                command,
                **{"stdout": file, "stderr": subprocess.STDOUT, "cwd": self.folder},
                **{"env": self.environment | dict(more or {}), "start_new_session": True},
            )
        self.started.append(process)
        return process

    def fork_apps(self) -> None:
        """Have programs of Flower's that import the app forked from one that has."""
        if not self.forking.exists():
            self.start("forking.log", sys.executable, "-P", forking.__file__, str(self.forking))
            wait_until(self.forking.exists, 60, "what forks")

    def superlink(self, trust: Path, address: str = "") -> tuple[str, subprocess.Popen[bytes]]:
        """Start a SuperLink with the certificate of a folder; its address, once it answers."""
        at = address or f"127.0.0.1:{free_port()}"
        self.fork_apps()
        given = ("devices", "superlink", str(trust), "--port", at.rpartition(":")[2])
        process = self.start("superlink.log", "fedprune", *given)
        wait_until(lambda: answers(f"https://{at}/health", trust), 60, "the SuperLink")
        return at, process

    def supernode(self, address, partition, data, trust):
        """Start a device that has its own data and key, or a site of several: "0,1".

        As what `fedprune devices node` becomes: for its checks alone no process imports torch.
        """
        given = ("--superlink", address, "--port", str(free_port()))
        config = f'partition-id={json.dumps(partition)} data="{data}"'
        with patch("fedprune.commands.programs.os.execve", side_effect=Became) as become:
            with suppress(Became):
                self.devices("node", str(trust), *given, "--config", config)
            _, words, environment = become.call_args.args
        return self.start(f"device-{partition}.log", *words, more=environment)

    def devices(self, *arguments: str) -> tuple[int, str]:
        """Run `fedprune devices` to its end, in this process: its code, and what it prints."""
        said = io.StringIO()
        with (
            patch.dict(os.environ, self.environment, clear=True),
            chdir(self.folder),
            redirect_stdout(said),
        ):
            code = main(["devices", *arguments])
        return code, said.getvalue()

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Flower's command line to its end."""
        how = {"capture_output": True, "text": True, "check": False, "timeout": 1200}
        return subprocess.run(("flwr", *arguments), cwd=self.folder, env=self.environment, **how)

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


class Became(Exception):
    """The process would be another program now."""


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


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
