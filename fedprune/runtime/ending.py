"""How a command ends: one line for whatever happens, and the code that says which it was.

0: done. 1: it began and came to nothing, or a check failed. 2: bad input. 130: interrupted, by
Ctrl-C or by SIGTERM.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGTERM interrupts as Ctrl-C does, also where that is ignored (``nohup``, ``&``).

    Elsewhere than in the main thread, where Python takes no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
        _silence()
        return report_error(program, "the output was closed by what read it")
    except KeyboardInterrupt:
        return INTERRUPTED


def report_error(program: str, error: object, code: int = FAILED) -> int:
    """Print one line about an error, where that is still possible, and give back the code."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code


def _silence() -> None:
    """Python writes what is left when it ends, and would fail once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
