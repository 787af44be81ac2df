"""Works that go through the blocks of a model side by side, so that each block is there once.

Each work runs in a thread of its own, one at a time, and stops before a block that is not there.
When all have come so far as they can, the next block is brought. What they carry on (the hidden
states of their batches) stays where it is, in their calls. Every layer sees the works in their
order, as if they had run one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


class Stopped(BaseException):
    """A work is to end: another one failed. No `Exception`, which a model might catch."""


@dataclass
class _Walker:
    """A work on its way.

    `go` is released when it may go on, `back` when it waits or is over; `at` is the block that it
    waits before.
    """

    work: Callable[[], Any]
    back: threading.Semaphore
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    at: str = ""
    over: bool = False
    value: Any = None
    error: BaseException | None = None


@dataclass
class Lockstep:
    """Where works meet.

    `bring` makes a block be there, and lets go of the one before.
    """

    bring: Callable[[str], None]
    stopping: bool = False
    _here: threading.local = field(default_factory=threading.local)

    def arrive(self, block: str, present: str) -> bool:
        """Called in a work before a block: waits until it is there; False outside of works."""
        walker: _Walker | None = getattr(self._here, "walker", None)
        if walker is None:
            return False
        if block != present:
            walker.at = block
            walker.back.release()
            walker.go.acquire()
            if self.stopping:
                raise Stopped
        return True

    def run(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        """What the works give, in their order.

        Raises:
            BaseException: what one of them raised first; the others are ended.
        """
        back, self.stopping = threading.Semaphore(0), False
        walkers = [_Walker(work, back) for work in works]
        how = torch.is_grad_enabled(), torch.get_num_threads()
        threads = [
            threading.Thread(target=self._walk, args=(w, *how), daemon=True) for w in walkers
        ]
        try:
            for walker, thread in zip(walkers, threads, strict=True):
                thread.start()
                self._wait(walker)
            while left := [w for w in walkers if not w.over]:
                block = left[0].at
                self.bring(block)
                for walker in (w for w in left if w.at == block):
                    walker.go.release()
                    self._wait(walker)
        finally:
            self.stopping = True
            for walker, thread in zip(walkers, threads, strict=True):
                walker.go.release()
                if thread.ident is not None:
                    thread.join()
        return [w.value for w in walkers]

    def _wait(self, walker: _Walker) -> None:
        walker.back.acquire()
        if walker.error is not None:
            raise walker.error

    def _walk(self, walker: _Walker, gradients: bool, threads: int) -> None:
        self._here.walker = walker
        torch.set_num_threads(threads)
        try:
            with torch.set_grad_enabled(gradients):
                walker.value = walker.work()
        except Stopped:
            pass
        except BaseException as error:
            walker.error = error
        finally:
            walker.over = True
            walker.back.release()
