"""Whatever a client's code does to the process costs that client only."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from fedprune.runtime.guarding import allowance, guarded, handlers


def loops() -> None:
    while True:
        pass


def endures() -> None:
    """As code with a bare ``except`` does."""
    try:
        loops()
    except BaseException:
        loops()


def raises(error):
    raise error


def takes_the_handlers() -> None:
    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def handling():
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]


@pytest.mark.parametrize("held", [nullcontext, handlers], ids=["each", "phase"])
@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: raises(KeyboardInterrupt), "KeyboardInterrupt"),
        (lambda: raises(GeneratorExit), "GeneratorExit"),
        (loops, "took longer than its part of --timeout"),
        (lambda: time.sleep(1e6), "took longer than its part of --timeout"),
    ],
)
def test_what_would_end_the_process_is_an_error(work, reason, held):
    before = handling()
    with held():
        guarded(takes_the_handlers, 5.0)  # they are there again for the next
        with pytest.raises(RuntimeError, match=f"^{reason}$"):
            guarded(work, 0.2)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert handling() == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert guarded(lambda: 7, 0.2) == 7


def test_who_catches_everything_is_interrupted_again(monkeypatch):
    monkeypatch.setattr("fedprune.runtime.guarding.AGAIN", 0.1)
    with pytest.raises(RuntimeError, match="took longer"):
        guarded(endures, 0.1)


def test_a_loop_in_another_thread_ends_too():
    with ThreadPoolExecutor() as pool:
        assert "took longer" in str(pool.submit(guarded, loops, 0.2).exception(20))
        assert pool.submit(guarded, lambda: 7, 0.2).result(20) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_users_own_interrupt_is_no_clients_failure(number):
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            guarded(lambda: os.kill(os.getpid(), number) or time.sleep(5), 9.0)
    finally:
        signal.signal(number, before)


def test_however_many_hang_the_phase_ends_in_its_time():
    share, began = allowance(4.0), time.monotonic()
    for left in (3, 2):
        with pytest.raises(RuntimeError):
            guarded(loops, share(left) / 8)
        assert share(left) < 2.0
    assert 2.0 < share(1) < 4.0
    assert time.monotonic() - began < 4.0
