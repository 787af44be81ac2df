"""Flower's simulation on Ray: the same server and client apps, one worker per processor."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from fedprune.config import RunConfig
from fedprune.options.refusal import ConfigError
from fedprune.records.bound import Going
from fedprune.report.screen import Screen
from fedprune.runtime.ending import INTERRUPTED
from fedprune.runtime.process import put_back

GRACE = 20.0
"""Seconds for Flower's simulation to end after the run; what hangs then is left behind."""


def simulate(config: RunConfig, folder: Path, screen: Screen, going: Going) -> None:
    """Run to the end; an error in the server's half is raised here.

    Settings of this process, the environment included, are as they were afterwards
    (`fedprune.runtime.process.put_back`). Where Ray is in use in it already, the run takes place
    there, on all that Ray has, and Ray goes on; else it starts a Ray of its own, and ends it.

    Raises:
        ConfigError: Ray did not start, or `ray_address` names another one than that in use.
        SystemExit: no round was completed.
    """
    with put_back():
        _simulated(config, folder, screen, going)


def _simulated(config: RunConfig, folder: Path, screen: Screen, going: Going) -> None:
    set_environment()
    # Flower and Ray read the environment when they are imported.
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

    from fedprune.engines.flower.client_app import app as client_app
    from fedprune.engines.flower.server_app import run_on

    server_app = ServerApp()
    outcome: list[BaseException] = []
    quiet, ended, finished = ExitStack(), threading.Event(), threading.Event()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        del context  # Flower's run config is empty here; ours came on the command line
        try:
            run_on(grid, config, folder, screen, going)
        except BaseException as error:  # carried to the caller's thread
            outcome.append(error)
        ended.set()
        if not config.verbose:
            # All has been said; what Ray prints while its workers end would come after it.
            quiet.enter_context(redirect_stdout(StringIO()))

    def run_all() -> None:
        try:
            run_apps(server_app, client_app, config, config.hosts)
        except ConfigError as error:
            outcome.append(error)
        except Exception as error:
            if not ended.is_set():
                line = f"engine='ray': {_reason(error)}; allowed: {_INSTEAD}"
                outcome.append(ConfigError(line))
        finally:
            finished.set()

    with quiet:
        _start_and_wait(run_all, (ended, finished), screen)
    screen.stop()
    if outcome:
        raise outcome[0]


_INSTEAD = "what this machine has, or --engine inline"


def _reason(error: BaseException) -> str:
    """Why Flower's simulation did not start or broke off: the first error of the chain."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _start_and_wait(
    work: Callable[[], None], ends: tuple[threading.Event, threading.Event], screen: Screen
) -> None:
    """Do the work in a thread of its own, so that an interrupt reaches ours and not Flower's.

    It is over when Flower is, or a while after the run is: a client that hangs keeps its worker.

    Interrupted in the middle, Flower's simulation waits for ever for its server's half. So the
    first interrupt asks that half to stop at the next question, the second one ends at once.
    """
    ended, finished = ends
    threading.Thread(target=work).start()
    last = math.inf
    while not finished.is_set() and time.monotonic() < last:
        try:
            finished.wait(0.2)  # an interrupted Thread.join would call a live thread dead
            if ended.is_set():
                last = min(last, time.monotonic() + GRACE)
        except KeyboardInterrupt:
            if screen.halted:
                os._exit(INTERRUPTED)
            screen.halt()


def set_environment() -> None:
    """What Flower, Ray and the workers take from the environment, unless the user has set it."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    # Workers have one torch thread each; BLAS and OpenMP must not start more of their own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Workers pass on and add up whole models in buffers that come and go. From huge pages these
    # are had several times faster; glibc reads this when a process starts, others ignore it.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # At the end Flower has each worker end itself; Ray, which may try a job twice, reports that.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"ClientAppActor\.terminate failed")


def run_apps(server_app: Any, client_app: Any, config: RunConfig, nodes: int) -> None:
    """Run two Flower apps in its simulation, with so many SuperNodes.

    The one place that touches Flower's deprecated API: it has no other in-process simulation.
    """
    from flwr.simulation import run_simulation

    if not config.verbose:
        # Flower logs a lost worker with its traceback; our rows name what was lost instead.
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
    with _ray_kept(config):
        run_simulation(
            server_app,
            client_app,
            num_supernodes=nodes,
            backend_config=backend_config(config),
            verbose_logging=config.verbose,
        )


@contextmanager
def _ray_kept(config: RunConfig) -> Iterator[None]:
    """Within the block Flower ends its workers, and Ray only if it is not in use here already."""
    import ray

    if not ray.is_initialized():
        yield
        return
    if config.ray_address:
        raise ConfigError(
            f"ray-address={config.ray_address!r}: this process uses a Ray already; "
            "allowed: leave it out, or ray.shutdown() before"
        )

    end: Any = ray.shutdown
    vars(ray)["shutdown"] = lambda *_args, **_kwargs: None  # Flower calls it when it is done
    try:
        yield
    finally:
        vars(ray)["shutdown"] = end


def backend_config(config: RunConfig) -> dict[str, Any]:
    """Flower's Ray backend: one worker per processor, GPUs shared evenly among them.

    A worker that dies is started again; without ``max_restarts`` it would fail every later job.
    With ``max_task_retries`` jobs wait until it is up; without, they would fail in the meantime,
    faster than a lost host can be asked again.
    """
    workers = config.workers or os.cpu_count() or 1
    # "local": never the cluster that somebody left running on this machine.
    start: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    if config.ray_address:
        start = {"address": config.ray_address}
    if not config.verbose:
        start |= {"logging_level": logging.ERROR, "log_to_driver": False}
    resources = {
        "num_cpus": 1,
        "num_gpus": _gpus_each(config, workers),
        "max_restarts": -1,
        "max_task_retries": 1,
    }
    return {"init_args": start, "client_resources": resources}


def _gpus_each(config: RunConfig, workers: int) -> float:
    import torch

    if config.gpus >= 0:
        return config.gpus
    return min(1.0, torch.cuda.device_count() / workers) if torch.cuda.is_available() else 0.0
