"""Files that are read again: replaced in one step, and refused where a byte is not as written.

A digest finds damage. It does not say who wrote a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MARK = b"FPSHA256"
_END = len(_MARK) + 32

FilePiece = bytes | memoryview
"""A part of a file's content."""


def write_atomically(path: Path, content: bytes | Iterable[FilePiece]) -> None:
    """Replace a file's content in one step, and see it and its name on the disk before that.

    Content may come in pieces, so that of a large model no second copy is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.unlink(missing_ok=True)  # a link there would have its target written over
    with fresh.open("xb") as file:
        for piece in _pieces(content):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Within it, what safetensors and tokenizers raise where a file cannot be written is `OSError`.

    They are written in Rust, have classes of their own for it, and end the text with the number.
    The path is for the error.
    """
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None or isinstance(error, OSError):
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def sync_folder(folder: Path) -> None:
    """See a folder's entries on the disk: a file made or renamed there outlives a crash."""
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def _pieces(content: bytes | Iterable[FilePiece]) -> Iterable[FilePiece]:
    return [content] if isinstance(content, bytes) else content


def write_verified(path: Path, content: bytes | Iterable[FilePiece]) -> None:
    """As `write_atomically`, with the SHA-256 of the file's name and content behind it."""
    write_atomically(path, _with_digest(path, content))


def _with_digest(path: Path, content: bytes | Iterable[FilePiece]) -> Iterator[FilePiece]:
    # With the name: another arm's state, or another client's residual, is sound and foreign.
    sha = hashlib.sha256(path.name.encode() + b"\0")
    for piece in _pieces(content):
        sha.update(piece)
        yield piece
    yield _MARK + sha.digest()


def read_verified(path: Path) -> bytes:
    """The content that `write_verified` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: a byte is not as it was written, no digest is there, or the file had another
            name; it is named.
    """
    data = path.read_bytes()
    content, end = data[:-_END], data[-_END:]
    *_, wanted = _with_digest(path, content)
    if end != wanted:
        raise ValueError(
            f"{path.name}: damaged or foreign, its SHA-256 is not that of its name and content"
        )
    return content


@dataclass(frozen=True)
class Prefix:
    """How a file that only grows began: its bytes, 0 where there was none, and their SHA-256."""

    size: int
    sha256: str


def prefix_of(path: Path) -> Prefix:
    """How a file begins now: all of it."""
    data = path.read_bytes() if path.is_file() else b""
    return Prefix(len(data), hashlib.sha256(data).hexdigest())


def check_prefix(path: Path, prefix: Prefix) -> None:
    """Refuse a file that does not begin as it did.

    Raises:
        ValueError: it is gone, shorter, or changed; it is named.
    """
    if prefix.size and not path.is_file():
        raise ValueError(f"{path.name} is gone")
    data = path.read_bytes()[: prefix.size] if path.is_file() else b""
    if len(data) < prefix.size:
        raise ValueError(f"{path.name} was cut: {len(data)} bytes of {prefix.size}")
    if hashlib.sha256(data).hexdigest() != prefix.sha256:
        raise ValueError(f"{path.name} was changed or damaged")


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Within the block a panic in Rust (tokenizers, safetensors, pcodec) is a ValueError.

    Their own is no `Exception`: who reads a file that holds anything would not see it.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(" ".join(str(error).split())[:300]) from None
