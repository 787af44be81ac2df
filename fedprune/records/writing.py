"""One run at a time writes into a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedprune.options.refusal import ConfigError

_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def only_writer(folder: Path | None) -> Iterator[None]:
    """Hold a run's folder, which is made if it is not there; None: nothing is held.

    The system lets go of it when the process ends, however it does, so that a run that was killed
    can be gone on with at once. Where the file system knows no locks, nobody is kept out.

    Raises:
        ConfigError: another run writes there.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        _locked(held, folder)
        yield
    finally:
        os.close(held)


def wait_for_writer(folder: Path, seconds: float, waiting: Callable[[], None]) -> None:
    """Wait until nobody writes into a run's folder, for so many seconds at most.

    For a run whose server was killed while its process, of another group, had yet to notice.

    `seconds`: how long. After them nothing is raised: `only_writer` says what there is to say.
    """
    until = time.monotonic() + seconds
    told = False
    while time.monotonic() < until:
        try:
            with only_writer(folder):
                return
        except ConfigError:
            if not told:
                waiting()
            told = True
            time.sleep(0.2)


def _locked(held: int, folder: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise ConfigError(
                f"folder={str(folder)!r}: another run writes there now; "
                "allowed: another folder, or this one when that run has ended"
            ) from None
