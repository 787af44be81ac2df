"""Flower's app processes as forks of one that has imported what they import: 4 s less each.

A SuperNode starts ``flwr-clientapp`` for every message. With `environment` that program hands its
words, its environment and its outputs to this one, which forks and runs Flower's own there. The
fork imports the app itself, from the bundle that Flower has installed; that the library in it is
the one that was imported here is looked at by its files (`test_programs`).
"""

import gc
import json
import os
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PROGRAMS = {
    "flwr-clientapp": ("flwr.supernode.cli", "flwr_clientapp"),
    "flwr-serverapp": ("flwr.superlink.cli", "flwr_serverapp"),
    "flwr-simulation": ("flwr.simulation.app", "flwr_simulation"),
}

SHARED = (
    *(
        "torch",
        "ray",
        "pydantic",
        "flwr.clientapp",
        "flwr.serverapp",
        "numpy.random",
        "scipy.special",
    ),
    *("fedprune.engines.flower.client_app", "fedprune.engines.flower.server_app"),
)
"""What apps import."""


def environment(address: Path) -> dict[str, str]:
    """What programs need to be told, to hand over to the process that listens at an address."""
    early = str(Path(__file__).with_name("early"))
    path = os.pathsep.join(filter(None, (early, os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "FORKING": str(address)}


def serve(address: str) -> None:
    """Fork for every program that hands over, until this process is ended."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(address)
        server.listen()
        for name in (*SHARED, *(module for module, _ in PROGRAMS.values())):
            import_module(name)
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
        while True:
            asking, _ = server.accept()
            told, outputs, _, _ = socket.recv_fds(asking, 1 << 20, 2)
            asking.close()
            group, *words = json.loads(told)
            if (pid := os.fork()) == 0:
                server.close()
                _become(words, outputs)
            Path(f"{address}.{group}.{pid}").touch()
            for output in outputs:
                os.close(output)


def forks_of(address: Path, group: int) -> list[int]:
    """Processes, ended ones too, that programs of a process group handed over."""
    return [int(path.suffix[1:]) for path in address.parent.glob(f"{address.name}.{group}.*")]


def _become(words: list[Any], outputs: list[int]) -> None:
    """Run Flower's program in this process, and end it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for i, output in enumerate(outputs, 1):
        os.dup2(output, i)
        os.close(output)
    sys.argv, folder, variables = words
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    module, function = PROGRAMS[Path(sys.argv[0]).name]
    getattr(import_module(module), function)()
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1])
