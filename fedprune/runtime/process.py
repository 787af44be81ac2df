"""What a call changes in the process that it runs in, and puts back when it ends."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes in one thread, and afterwards in as many as before.

    With more, results depend on the machine, and workers that share its processors slow each
    other down many times over.
    """
    before = torch.get_num_threads()
    if before == 1:  # so in every worker; setting it takes longer than looking
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


TRIMMED_FROM = 10**6
"""Parameters of a model that is worth the time that `trim_memory` takes."""


def trim_memory(parameters: int, *, first: bool = False) -> None:
    """Hand free memory back to the operating system, for a model of so many parameters.

    glibc keeps what was freed between pieces that are in use; of large models that is as much again
    as is in use, of many clients as much as `FREE` and more. With `first` models that refer to
    themselves are let go of before.
    """
    large = parameters >= TRIMMED_FROM
    if not large and not _worth_it():
        return
    if first and large:
        gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
        _LEAST[0] = resident()


_LEAST = [0]
"""The fewest bytes that were resident since memory was last handed back: what is free then still
counts as free."""

FREE = 2**24
"""Bytes of free memory between pieces that are in use, from which they are handed back."""

_LARGE = 2**20
"""Bytes from which a piece of memory goes back to the operating system when it is freed."""

_MMAP_THRESHOLD = -3
"""What mallopt(3) calls it."""


def hand_back_at_once() -> None:
    """Have what is large handed back to the operating system whenever it is freed, from now on.

    glibc begins so, but with every large piece that is freed keeps the next ones up to its size
    instead, to 32 MiB: then the peak of a process is that of all its phases together. Training
    takes one part in a hundred more time. Whoever has set MALLOC_MMAP_THRESHOLD_ decides.
    """
    own = "MALLOC_MMAP_THRESHOLD_" in os.environ or sys.platform != "linux"
    choose = None if own else getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(_MMAP_THRESHOLD, _LARGE)


class _Heap(ctypes.Structure):
    """What glibc says of its memory (mallinfo(3))."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


_ASKED = [0]
LOOKS = 8
"""Of so many questions whether memory is worth handing back one looks through the heap: it takes a
millisecond or two, as long as a small question."""


def _worth_it() -> bool:
    now = resident()
    _LEAST[0] = min(_LEAST[0], now)
    if now < _LEAST[0] + FREE:
        return False
    _ASKED[0] += 1
    return _ASKED[0] % LOOKS == 1 and _free() >= FREE


def resident(which: str = "VmRSS") -> int:
    """Bytes resident now ("VmRSS") or at the peak ("VmHWM"); 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(which)), 0)


def _free() -> int:
    """Bytes that were freed and are kept; 0 where nobody says."""
    asked: Any = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if asked is None:
        return 0
    asked.restype = _Heap
    return int(asked().fordblks)


@functools.cache
def free_memory() -> int:
    """Bytes that the machine could give when this process first asked; what it goes by stays."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def put_back() -> Iterator[None]:
    """Within the block one torch thread; afterwards, errors included, the process is as it was.

    Back come: torch's threads, default type, gradient mode and deterministic flags; the global
    generators of torch (CPU and, where it is in use, CUDA), NumPy and `random`; warning filters;
    levels of loggers; environment variables; verbosity and progress bars of transformers and
    datasets. Not what a module does when it is imported for the first time, and no global that a
    plug-in changes beside these.
    """
    with one_thread(), warnings.catch_warnings():
        undo = [*_of_torch(), *_of_python(), *_of_libraries()]
        try:
            yield
        finally:
            # What was imported in between has no earlier setting: its own is left alone.
            for restore in undo:
                restore()


Undo = Callable[[], object]


def _of_torch() -> list[Undo]:
    cpu, dtype = torch.get_rng_state(), torch.get_default_dtype()
    gradients = torch.is_grad_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    exact = torch.are_deterministic_algorithms_enabled()
    cudnn: Any = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("deterministic", "benchmark")}
    undo: list[Undo] = [
        lambda: torch.set_rng_state(cpu),
        lambda: torch.set_default_dtype(dtype),
        lambda: torch.set_grad_enabled(gradients),
        lambda: _deterministic(exact, warn_only=only_warn),
        *(lambda n=name, v=value: setattr(cudnn, n, v) for name, value in flags.items()),
    ]
    if torch.cuda.is_initialized():
        devices = torch.cuda.get_rng_state_all()
        undo.append(lambda: torch.cuda.set_rng_state_all(devices))
    return undo


def _of_python() -> list[Undo]:
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()
    environment, manager = dict(os.environ), logging.Logger.manager
    loggers = [logging.getLogger(), *manager.loggerDict.values()]
    levels = [(x, x.level) for x in loggers if isinstance(x, logging.Logger)]

    def restore_environment() -> None:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update({n: v for n, v in environment.items() if os.environ.get(n) != v})

    def restore_levels() -> None:
        for logger, level in levels:
            if logger.level != level:
                logger.setLevel(level)

    return [
        lambda: random.setstate(drawn),
        lambda: np.random.set_state(drawn_by_numpy),
        restore_environment,
        restore_levels,
    ]


def _of_libraries() -> list[Undo]:
    undo: list[Undo] = []
    transformers: Any = sys.modules.get("transformers.utils.logging")
    if transformers is not None:
        level, bars = transformers.get_verbosity(), transformers.is_progress_bar_enabled()
        undo += [
            lambda: transformers.set_verbosity(level),
            transformers.enable_progress_bar if bars else transformers.disable_progress_bar,
        ]
    datasets: Any = sys.modules.get("datasets")
    if datasets is not None:
        shown = datasets.is_progress_bar_enabled()
        undo.append(datasets.enable_progress_bars if shown else datasets.disable_progress_bars)
    return undo


def _deterministic(exact: bool, *, warn_only: bool) -> None:
    """Only where that changes something: torch loads its compiler to set it."""
    now = torch.are_deterministic_algorithms_enabled()
    if (now, torch.is_deterministic_algorithms_warn_only_enabled()) != (exact, warn_only):
        torch.use_deterministic_algorithms(exact, warn_only=warn_only)
