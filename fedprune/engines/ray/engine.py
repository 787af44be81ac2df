"""A run on Ray: workers of our own, Flower's grid over them, the same server and client apps."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.client.footprint import Footprint
from fedprune.config import RunConfig
from fedprune.engines.ray.nodes import Node, Staff, staff_of
from fedprune.engines.ray.starting import check_gpus
from fedprune.options.refusal import ConfigError
from fedprune.records.bound import Going
from fedprune.report.screen import Screen
from fedprune.runtime.process import put_back
from fedprune.tasks.task import Shard

if TYPE_CHECKING:
    from fedprune.engines.ray.grid import RayGrid


def simulate(
    config: RunConfig,
    folder: Path,
    screen: Screen,
    going: Going,
    shards: Mapping[int, Shard],
    labels: Mapping[int, int],
    needs: Footprint,
    *,
    leaving: bool = False,
) -> None:
    """Run to the end.

    With `leaving` the process is about to end, and a Ray of its own is left to end with it
    (`fedprune.engines.ray.starting.leave`): Ray takes seconds to be ended in order.

    Settings of this process, the environment included, are as they were afterwards
    (`fedprune.runtime.process.put_back`). Where Ray is in use in it already, the run takes place
    there, on all that Ray has, and Ray goes on; else it starts a Ray of its own, and ends it.

    Raises:
        ConfigError: Ray did not start, `ray_address` names another one than that in use, or a node
            lacks what it needs.
        fedprune.engines.ray.grid.Unserved: no node was left; the rounds played are kept.
        SystemExit: no round was completed.
    """
    from fedprune.engines.flower.server_app import run_on

    with put_back(), ray_grid(config, shards, labels, needs, leaving=leaving) as grid:
        screen.line(f"  workers     {grid.crew.told()}")
        run_on(grid, config, folder, screen, going)


@contextmanager
def ray_grid(
    config: RunConfig,
    shards: Mapping[int, Shard],
    labels: Mapping[int, int],
    needs: Footprint,
    *,
    leaving: bool = False,
) -> Iterator[RayGrid]:
    """Within the block a grid whose workers are ready; afterwards they have ended.

    Of `leaving` see `simulate`.

    Raises:
        ConfigError: as for `simulate`.
    """
    set_environment(config)
    # Ray reads the environment when it is imported.
    with _ray(config, leaving=leaving):
        import ray

        from fedprune.engines.ray.baggage import baggage_of
        from fedprune.engines.ray.crew import Crew
        from fedprune.engines.ray.grid import RayGrid
        from fedprune.engines.ray.identity import as_a_task

        where = f"the cluster at {config.ray_address}" if config.ray_address else "Ray"
        check_gpus(config, ray.cluster_resources().get("GPU", 0.0), where)

        def staff(node: Node) -> Staff:
            return staff_of(node, needs, config.gpus, config.workers)

        crew = Crew(baggage_of(config, shards), staff, config.hosts)
        with as_a_task():
            try:
                grid = RayGrid(crew, dict(labels), config.timeout)
                grid.gather()
                yield grid
            finally:
                crew.end()


@contextmanager
def _ray(config: RunConfig, *, leaving: bool) -> Iterator[None]:
    """Within the block there is a Ray: the one in use here, the one at an address, or its own."""
    import ray

    if ray.is_initialized():
        if config.ray_address:
            raise ConfigError(
                f"ray-address={config.ray_address!r}: this process uses a Ray already; "
                "allowed: leave it out, or ray.shutdown() before"
            )
        yield
        return
    # "local": never the cluster that somebody left running on this machine.
    start: dict[str, Any] = {"address": config.ray_address or "local"}
    if not config.ray_address:
        workers = config.workers or os.cpu_count() or 1
        start |= {"num_cpus": workers, "include_dashboard": False}
    if not config.verbose:
        start |= {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        with _own_handlers():
            ray.init(**start)
    except Exception as error:  # whatever Ray raises where it cannot start
        raise ConfigError(f"engine='ray': {_reason(error)}; allowed: {_INSTEAD}") from None
    try:
        yield
    finally:
        if config.ray_address or not leaving:
            ray.shutdown()


_INSTEAD = "what this machine has, or --engine inline"


def _reason(error: BaseException) -> str:
    """Why Ray did not start: the first error of the chain."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text.partition(" Traceback ")[0][:300]


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Within the block Ray may set signal handlers; afterwards those of before are back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(TypeError):  # one that C set
                signal.signal(number, handler)


def set_environment(config: RunConfig) -> None:
    """What Flower, Ray and the workers take from the environment, unless the user has set it."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    # Workers have one torch thread each; BLAS and OpenMP must not start more of their own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Workers pass on and add up whole models in buffers that come and go. From huge pages these
    # are had several times faster; glibc reads this when a process starts, others ignore it.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not config.verbose:  # of a node that is gone Ray would print the log
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    # Whatever is imported here is found by workers, too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
