"""``SHA256SUMS``: the digest of every file of a finished run that is read again.

In the form of coreutils, so that ``sha256sum -c SHA256SUMS`` checks a folder, too. The last line is
the digest of the lines before it. Digests find damage. They do not say who wrote a folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from fedprune.runtime.files import write_atomically
from fedprune.runtime.json_text import read_object

SUMS_NAME = "SHA256SUMS"
SUMMARY_NAME = "summary.json"
"""Written just before the sums, and named by them: where it is, they are."""


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of those of the named files that are there."""
    text = "".join(f"{sha256_of(folder / n)}  {n}\n" for n in names if (folder / n).is_file())
    write_atomically(folder / SUMS_NAME, f"{text}{_end_of(text)}".encode())


def check_sums(folder: Path, *, ended: bool = False) -> None:
    """Refuse a finished run whose files are not as they were written; of another folder nothing.

    Args:
        folder: of a run, or of a model.
        ended: refuse a run that has not ended, too: nothing vouches for its files.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file was changed, or is gone; it is named.
    """
    path = folder / SUMS_NAME
    if not path.exists():
        if ended or (folder / SUMMARY_NAME).exists():
            raise ValueError(f"{path}: gone; allowed: the folder of a finished run as it was left")
        return
    for digest, name in _lines_in(path):
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file}: gone, though {SUMS_NAME} names it")
        if sha256_of(file) != digest:
            raise ValueError(f"{file}: damaged or changed, its SHA-256 is not the one in {path}")


def summary_in(folder: Path) -> dict[str, Any]:
    """What a run's summary says; nothing where there is none.

    Raises:
        ValueError: it is no summary of ours; it is named.
    """
    path = folder / SUMMARY_NAME
    if not path.is_file():
        return {}
    try:
        said = read_object(path.read_bytes())
        if not isinstance(said["quality"], dict) or not isinstance(said["command"], str):
            raise ValueError("no quality of a run")
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: no summary of a run: {error}"[:300]) from None
    return said


def _lines_in(path: Path) -> list[tuple[str, str]]:
    data = path.read_bytes() if path.is_file() else b""
    end = data.rfind(b"#")
    if end < 0 or data[end:] != _end_of(data[:end].decode(errors="replace")).encode():
        raise ValueError(f"{path}: damaged or changed, its last line is not of those before it")
    found = [line.partition("  ")[::2] for line in data[:end].decode().splitlines()]
    names = [name for _, name in found]
    if SUMMARY_NAME not in names or not all(is_inside(name) for name in names):
        raise ValueError(f"{path}: not written by a run")
    return found


def _end_of(text: str) -> str:
    return f"# {hashlib.sha256(text.encode()).hexdigest()}\n"


def is_inside(name: str) -> bool:
    """Whether a file's name, as another file gives it, stays in the folder of both."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
