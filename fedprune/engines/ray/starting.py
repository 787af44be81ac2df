"""Whether Ray can start as a configuration asks, found out in seconds; and how a process ends."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from fedprune.config import RunConfig
from fedprune.options.refusal import ConfigError

CONNECT = 5.0
"""Seconds for a cluster's address to accept a connection."""

ANSWER = 60.0
"""Seconds for a cluster that accepts connections to say what it has."""

ENDING = 15.0
"""Seconds for Ray to end before the process does without it."""

_NOTE = Path("/tmp/ray/ray_current_cluster")
"""Where Ray writes the address that ``auto`` stands for; a cluster that died leaves it there."""

_PROBE = """
import json, logging, sys, ray
ray.init(address=sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
print(json.dumps(ray.cluster_resources()))
"""


def require_ray(config: RunConfig) -> None:
    """Refuse to start where Ray cannot, or cannot have what is asked for.

    Raises:
        ConfigError: flwr or ray is not installed, no cluster is at the address, or nobody has the
            GPUs.
    """
    for package in ("flwr", "ray"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"engine='ray': {package} is not installed; "
                "allowed: pip install 'fedprune[flower]', or --engine inline"
            )
    if config.ray_address:
        there = _of_cluster(config.ray_address).get("GPU", 0.0)
    elif config.gpus > 0:
        import torch

        there = torch.cuda.device_count()
    if config.gpus > 0 and config.gpus > there:
        where = f"the cluster at {config.ray_address}" if config.ray_address else "this machine"
        raise ConfigError(f"gpus={config.gpus:g}: {where} has {there:g}; allowed: 0, or -1")


def _of_cluster(address: str) -> dict[str, float]:
    """What a cluster has, asked in a process of its own: Ray may wait for ever for its answer.

    Raises:
        ConfigError: nothing answers at the address.
    """

    def refuse(reason: str) -> ConfigError:
        reason = " ".join(reason.split())[:200]
        return ConfigError(
            f"ray-address={address!r}: {reason}; "
            "allowed: HOST:PORT that `ray start --head` printed, or without: a Ray of its own"
        )

    if wrong := _unreachable(address):
        raise refuse(wrong)
    command = [sys.executable, "-c", _PROBE, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER)
        found: dict[str, float] = json.loads((done.stdout.splitlines() or [""])[-1])
    except subprocess.TimeoutExpired:
        raise refuse(f"no Ray answers there within {ANSWER:g} s") from None
    except ValueError:
        raise refuse((done.stderr.strip().splitlines() or ["no Ray is there"])[-1]) from None
    return found


def _unreachable(address: str) -> str:
    """Why nothing can be reached at an address; "" where something can, or Ray has to say."""
    if address == "auto":
        address = _NOTE.read_text().strip() if _NOTE.is_file() else ""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return "" if not address or "://" in address else "no HOST:PORT"
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
    except (OSError, OverflowError) as error:
        return f"nothing answers at {host}:{port} ({error})"
    return ""


def leave(code: int) -> None:
    """End the process with this code, whatever threads and workers still wait for a client."""
    others = [t for t in threading.enumerate() if t is not threading.main_thread()]
    if any(not thread.daemon for thread in others):
        if ray := sys.modules.get("ray"):
            ending = threading.Thread(target=ray.shutdown, daemon=True)
            ending.start()
            ending.join(ENDING)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        os._exit(code)
    sys.exit(code)
