"""How a command ends: one line for whatever happens, and the code that says which it was.

0: done. 1: it began and came to nothing, or a check failed. 2: bad input. 130: interrupted, by
Ctrl-C or by SIGTERM.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Set

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

GRACE = 20.0
"""Seconds in which a command that was interrupted ends in order; then it ends at once."""

_HINTS: list[str] = []
"""What to say if the command is interrupted."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGTERM interrupts as Ctrl-C does, also where that is ignored (``nohup``, ``&``).

    A process that was interrupted and has not left the block after `GRACE` seconds ends there: a
    call into C that does not come back (Ray makes such calls) sees no signal.

    Elsewhere than in the main thread, where Python takes no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _watched():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def resumable(hint: str) -> Iterator[None]:
    """Where its block is interrupted, a line on standard error says so, with this hint.

    Raises:
        KeyboardInterrupt: as the block did.
    """
    _HINTS.append(hint)
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print(f"\n{_interrupted()}", file=sys.stderr, flush=True)
        raise
    finally:
        _HINTS.pop()


def _interrupted() -> str:
    return "; ".join(["interrupted", *_HINTS])


_WATCHING: list[threading.Thread] = []
"""Those that see signals now."""

_ENDING = (signal.SIGINT, signal.SIGTERM)

_LEFT = b"\0"
"""What is written where signals are noted when the block is left: the number of no signal."""


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Within it a thread sees signals as they come, whatever the main thread does."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    # Whoever has put a handler of their own there decides what a signal means.
    ends = {n for n in _ENDING if signal.getsignal(n) is signal.default_int_handler}
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    watching = threading.Thread(target=_end_in_time, args=(reads, ends), daemon=True)
    watching.start()
    _WATCHING.append(watching)
    try:
        yield
    finally:
        _WATCHING.pop()
        signal.set_wakeup_fd(before)
        os.write(writes, _LEFT)
        watching.join()
        os.close(writes)
        os.close(reads)


def _end_in_time(signals: int, ends: Set[int]) -> None:
    """End the process where one of those signals came and the block is not left in time."""
    until = math.inf
    while (left := until - time.monotonic()) > 0:
        if select.select([signals], [], [], None if left == math.inf else left)[0]:
            came = os.read(signals, 1)
            if came == _LEFT:
                return
            if came[0] in ends:
                until = min(until, time.monotonic() + GRACE)
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    at_work = f"{frame.f_code.co_filename}:{frame.f_lineno}, {frame.f_code.co_name}"
    told = f"ended after {GRACE:g} s, for this did not return: {at_work}"
    with contextlib.suppress(OSError):  # not by print, which waits for whoever holds the stream
        os.write(2, f"\n{_interrupted()}\nfedprune: error: {told}\n".encode())
    os._exit(INTERRUPTED)


def _let_go_in_child() -> None:
    """Have a forked process, which is interrupted by itself, not write into its parent's pipe."""
    if _WATCHING:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_let_go_in_child)


def plain_output() -> None:
    """Let the streams write what their encoding has no character for as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def ended(work: Callable[[], int], program: str) -> int:
    """The exit code of a command whose output somebody may have stopped reading."""
    plain_output()
    try:
        with interruptible():
            code = work()
            sys.stdout.flush()  # here, where a closed pipe can still be told
            return code
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # Python writes what is left when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return report_error(program, "the output was closed by what read it")
    except KeyboardInterrupt:
        return INTERRUPTED


def report_error(program: str, error: object, code: int = FAILED) -> int:
    """Print one line about an error, where that is still possible, and give back the code."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code
