"""One run at a time writes into a folder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
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


def _locked(held: int, folder: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise ConfigError(
                f"folder={str(folder)!r}: another run writes there now; "
                "allowed: another folder, or this one when that run has ended"
            ) from None
