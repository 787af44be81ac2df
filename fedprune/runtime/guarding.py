"""What a client's code may do to the process that it runs in: fail by itself, whatever it raises.

A client that loops or sleeps for ever is interrupted after its time, as long as it is Python that
runs; a call into C that does not return is not. ``os._exit`` ends the process: on Ray a worker's,
which is started again, with ``--engine inline`` the run's.
"""

from __future__ import annotations

import ctypes
import importlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

Answered = TypeVar("Answered")

AGAIN = 5.0
"""Seconds until a client that caught the interruption is interrupted once more."""


class TooLong(BaseException):
    """A client's time is over. No `Exception`: what a client catches must not keep it going."""


def allowance(seconds: float) -> Callable[[int], float]:
    """How long each of several may take from now on, so that all end in so many seconds.

    Gives half of what is left where others come after; all of it to the last, a second at least.
    """
    until = time.monotonic() + seconds

    def share(left: int) -> float:
        rest = max(until - time.monotonic(), 1.0)
        return rest / 2 if left > 1 else rest

    return share


def guarded(work: Callable[[], Answered], seconds: float) -> Answered:
    """What `work` gives back; what ends a process elsewhere is an error here.

    Within `handlers` these are in place already.

    Raises:
        RuntimeError: it took longer than so many seconds, or asked for the end of the process.
        KeyboardInterrupt: the user's, from a signal; one that `work` itself raised is an error.
    """
    if _may_signal() and not _HELD:
        with handlers():
            return guarded(work, seconds)
    held = _HELD[-1] if _may_signal() else None
    came = list[int]() if held is None else held.came
    came.clear()
    try:
        if held is not None:
            return held.limited(work, seconds)
        with _interrupts(came), _limited(seconds):
            return work()
    except TooLong:
        raise RuntimeError("took longer than its part of --timeout") from None
    except KeyboardInterrupt as error:
        if came or threading.current_thread() is not threading.main_thread():
            raise
        raise RuntimeError(_name(error)) from None
    except (SystemExit, GeneratorExit) as error:
        raise RuntimeError(_name(error)) from None


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _may_signal() -> bool:
    """Whether this thread gets signals, and no time of another runs in it."""
    main = threading.current_thread() is threading.main_thread()
    return main and not signal.getitimer(signal.ITIMER_REAL)[0]


@dataclass(frozen=True)
class _Held:
    """Handlers of signals that stay from one client to the next, by signal.

    `came` are the signals that asked for the end; `running` is not empty while a client's time
    runs.
    """

    installed: dict[int, Any] = field(default_factory=dict)
    came: list[int] = field(default_factory=list)
    running: list[bool] = field(default_factory=list)

    def alarm(self, _number: int, _frame: FrameType | None) -> None:
        """A client's time is over."""
        if self.running:
            raise TooLong

    def limited(self, work: Callable[[], Answered], seconds: float) -> Answered:
        """What `work` gives back, which is interrupted after so many seconds."""
        self.running.append(True)
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            return work()
        finally:
            self.running.clear()
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in self.installed.items():
                if _handler_of(number) is not handler:  # a client put its own there
                    signal.signal(number, handler)


_handler_of: Callable[[int], object] = importlib.import_module("_signal").getsignal
"""As `signal.getsignal`, which first looks for each handler among its enumerations."""

_HELD: list[_Held] = []
"""Those in place: at most one, of the main thread."""


@contextmanager
def handlers() -> Iterator[None]:
    """Within the block `guarded` finds its handlers in place: to put them there takes long.

    For a phase that asks many clients, one after the other, in the thread that opens the block.
    """
    if _HELD or not _may_signal():
        yield
        return
    held = _Held()
    with _interrupts(held.came) as installed:
        held.installed.update(installed)
        held.installed[signal.SIGALRM] = alarm = held.alarm
        before = signal.signal(signal.SIGALRM, alarm)
        _HELD.append(held)
        try:
            yield
        finally:
            _HELD.clear()
            signal.signal(signal.SIGALRM, before)


@contextmanager
def _interrupts(came: list[int]) -> Iterator[dict[int, Any]]:
    """Note which signals asked for the end; their handlers do what they did.

    Gives what was installed, by signal.
    """
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before[number](number, frame)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield dict.fromkeys(before, note)
    finally:
        for signalled, handler in before.items():
            signal.signal(signalled, handler)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `TooLong` in this thread after so many seconds, without a signal.

    At its next step in Python: it wakes nobody who sleeps.
    """
    raised = (ctypes.c_ulong(threading.get_ident()), ctypes.py_object(TooLong))
    timer = threading.Timer(seconds, ctypes.pythonapi.PyThreadState_SetAsyncExc, raised)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
