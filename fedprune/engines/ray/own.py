"""A Ray of this process's own: how it is started, at once or beside what else is to be done."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedprune.config import RunConfig
from fedprune.config.options import Results
from fedprune.options.refusal import ConfigError

SERVING = "fedprune.engines.ray.serving"

PRELOADED = 8
"""Workers up to which each imports what it serves with before it is needed. Ray starts as many as
there are processors: with more of them, those that find no room would take memory for nothing."""

_INSTEAD = "what this machine has, or --engine inline"


def set_environment(config: Results) -> None:
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


def start_ray(config: RunConfig) -> None:
    """Join the Ray at the configuration's address, or start one of our own; else ConfigError."""
    import ray

    # "local": never the cluster that somebody left running on this machine.
    start: dict[str, Any] = {"address": config.ray_address or "local"}
    if not config.ray_address:
        workers = config.workers or os.cpu_count() or 1
        start |= {"num_cpus": workers, "include_dashboard": False}
        if workers <= PRELOADED:
            start["_system_config"] = {"preload_python_modules": [SERVING]}
    if not config.verbose:
        start |= {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        with _own_handlers():
            ray.init(**start)
    except Exception as error:  # whatever Ray raises where it cannot start
        raise ConfigError(f"engine='ray': {_reason(error)}; allowed: {_INSTEAD}") from None


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


class RayAhead:
    """A Ray that is being started by a thread of its own.

    The thread lives as long as its Ray: the kernel ends processes of Ray with the thread that
    began them.
    """

    def __init__(self, config: RunConfig) -> None:
        self._environment = dict(os.environ)
        set_environment(config)
        self._error: BaseException | None = None
        self._up, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._start, args=(config,), daemon=True)
        self._thread.start()

    def _start(self, config: RunConfig) -> None:
        try:
            start_ray(config)
        except BaseException as error:  # it is raised where somebody waits
            self._error = error
        self._up.set()
        self._over.wait()

    def wait(self) -> None:
        """Wait until it is up; ConfigError: it did not start."""
        self._up.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """End it, and put the environment back."""
        import ray

        self._up.wait()
        ray.shutdown()
        self._over.set()
        self._thread.join()
        for name in os.environ.keys() - self._environment.keys():
            del os.environ[name]
        os.environ.update(self._environment)


def ray_ahead(config: RunConfig) -> RayAhead | None:
    """A Ray of its own for a run that asks for one, which takes seconds to start; else None."""
    if config.engine != "ray" or config.ray_address:
        return None
    ray = sys.modules.get("ray")
    return None if ray is not None and ray.is_initialized() else RayAhead(config)
