"""Whether Ray can start as a configuration asks, found out in seconds; and how a process ends."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from fedprune.config.options import Engine
from fedprune.options.refusal import ConfigError

ANSWER = 15.0
"""Seconds for a cluster to answer at its address."""

_HEALTH = "/grpc.health.v1.Health/Check"
"""What every server of gRPC can be asked, Ray's among them (gRPC Health Checking Protocol)."""


def require_ray(config: Engine) -> None:
    """Refuse to start where Ray cannot, or cannot have what is asked for.

    Raises:
        ConfigError: flwr or ray is not installed, no cluster answers at the address, or this
            machine, where it is to serve, lacks the GPUs.
    """
    for package in ("flwr", "ray"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"engine='ray': {package} is not installed; "
                "allowed: pip install 'fedprune[flower]', or --engine inline"
            )
    if config.ray_address:
        _require_answer(config.ray_address)
    elif config.gpus > 0:
        import torch

        check_gpus(config, torch.cuda.device_count(), "this machine")


def note_path() -> Path:
    """Where Ray writes the address that ``auto`` stands for; a cluster that died leaves it there.

    Ray looks for its folder in this order (ray._common.utils, of Ray 2.55; importing it is slow).
    """
    above = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    return Path(above, "ray", "ray_current_cluster")


def check_gpus(config: Engine, there: float, where: str) -> None:
    """Refuse a share of a GPU, of which a worker is to get more than there is: ConfigError."""
    if config.gpus > there:
        raise ConfigError(f"gpus={config.gpus:g}: {where} has {there:g}; allowed: 0, or -1")


def _require_answer(address: str) -> None:
    """Refuse an address at which no Ray answers: Ray itself would wait for ever."""
    named = address
    if address == "auto":
        note = path.read_text().strip() if (path := note_path()).is_file() else ""
        named = os.environ.get("RAY_ADDRESS", "") or note
    host, colon, port = named.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit() or int(port) >= 2**16:
        wrong = "no HOST:PORT" if named else "no Ray has been started on this machine"
    else:
        wrong = _silent(f"{host}:{port}", client=named.startswith("ray://"))
    if wrong:
        raise ConfigError(
            f"ray-address={address!r}: {wrong}; "
            "allowed: HOST:PORT that `ray start --head` printed, or without: a Ray of its own"
        )


def _silent(target: str, *, client: bool) -> str:
    """Why nothing of Ray's kind answers at HOST:PORT; "" where something does.

    With `client` it is the address of Ray's client server, which says nothing of its health.
    """
    import grpc

    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary(_HEALTH)(b"", timeout=ANSWER)
        except grpc.RpcError as error:
            code, details = error.code(), " ".join(str(error.details()).split())
        else:
            return ""
    codes = grpc.StatusCode
    secret = code in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED)
    if secret or (client and code == codes.UNIMPLEMENTED and "http" not in details):
        return ""
    if code == codes.DEADLINE_EXCEEDED:
        return f"no Ray answers at {target} within {ANSWER:g} s"
    return f"no Ray answers at {target} ({details.rpartition(': ')[2][-100:]})"


def leave(code: int) -> NoReturn:
    """End the process with this code at once, whatever threads and workers still wait for a client.

    Taking down what torch, Ray and the rest have built takes seconds, and nothing of it is wanted.
    A Ray of its own ends too: its processes ask the kernel for a signal when this one is gone.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)
