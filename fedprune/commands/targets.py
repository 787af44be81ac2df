"""Whether a command may write where it is told to; asked before any work is done."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedprune.options.refusal import refuse


def check_file(key: str, value: str) -> None:
    """Refuse a file that cannot be written; its folder must be there, none is made for it."""
    path = Path(value)
    allowed = "a file in a folder that is there and can be written to"
    if path.is_dir():
        refuse(key, value, "is a folder", allowed)
    if not path.parent.is_dir():
        refuse(key, value, f"there is no folder {path.parent}", allowed)
    _check_writable(key, value, path.parent, allowed)


def check_folder(key: str, value: str) -> None:
    """Refuse a folder that is there already, or that cannot be made."""
    path = Path(value)
    if path.exists():
        refuse(key, value, "is there already", "a new folder")
    above = next(p for p in path.absolute().parents if p.exists())
    allowed = "a new folder where files can be written"
    if not above.is_dir():
        refuse(key, value, f"{above} is no folder", allowed)
    _check_writable(key, value, above, allowed)


def _check_writable(key: str, value: str, folder: Path, allowed: str) -> None:
    try:  # permissions do not tell it all: of /proc they say yes
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        refuse(key, value, f"{folder} cannot be written to ({error.strerror})", allowed)
