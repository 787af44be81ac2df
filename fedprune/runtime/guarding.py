"""What a client's code may do to the process that it runs in: fail by itself, whatever it raises.

A client that loops or sleeps for ever is interrupted after its time, as long as it is Python that
runs; a call into C that does not return is not. ``os._exit`` ends the process: on Ray a worker's,
which is started again, with ``--engine inline`` the run's.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    Raises:
        RuntimeError: it took longer than so many seconds, or asked for the end of the process.
        KeyboardInterrupt: the user's, from a signal; one that `work` itself raised is an error.
    """
    came: list[int] = []
    try:
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


@contextmanager
def _interrupts(came: list[int]) -> Iterator[None]:
    """Note which signals asked for the end; their handlers do what they did."""
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
        yield
    finally:
        for signalled, handler in before.items():
            signal.signal(signalled, handler)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `TooLong` in this thread after so many seconds."""
    if (
        threading.current_thread() is threading.main_thread()
        and not signal.getitimer(signal.ITIMER_REAL)[0]
    ):
        running = [True]

        def alarm(number: int, frame: FrameType | None) -> None:
            del number, frame
            if running:
                raise TooLong

        before = signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            yield
        finally:
            running.clear()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return
    here = threading.get_ident()
    timer = threading.Timer(seconds, _raise_in, (here,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _raise_in(thread: int) -> None:
    """Raise `TooLong` in a thread at its next step in Python: it wakes nobody who sleeps."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooLong))
