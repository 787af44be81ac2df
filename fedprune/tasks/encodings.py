"""Files of text in their encodings: what a mark says, else what is asked for, else UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fedprune.tasks.cells import NotRows

_MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What a file may begin with (a byte order mark), and the encoding that this says."""


_ENCODINGS = "--encoding with the file's own, as latin-1, cp1252, utf-16-le"


def encoding_of(path: Path, asked: str | None) -> str:
    """The encoding of a file: what the mark at its beginning says, else what is asked, else UTF-8.

    Raises:
        NotRows: the two contradict each other, or UTF-16 is asked for and the file is not that.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    marked = next((name for mark, name in _MARKS if start.startswith(mark)), "")
    name = codecs.lookup(asked or marked or "utf-8").name
    if marked and not name.startswith(codecs.lookup(marked).name.removesuffix("-sig")):
        raise NotRows(f"{path.name} begins with the mark of {marked}; allowed: no --encoding")
    wide = name.startswith(("utf-16", "utf-32"))
    if name in ("utf-16", "utf-32") and not marked:
        raise NotRows(f"{path.name} has no mark of {name}; allowed: {name}-le, {name}-be, others")
    if not wide and b"\0" in start:
        raise NotRows(f"{path.name} has bytes of zero and is not {name}; allowed: {_ENCODINGS}")
    return marked or name


@contextmanager
def opened_text(path: Path, asked: str | None) -> Iterator[TextIO]:
    """A file of text, with its line ends as they were written.

    Raises:
        NotRows: it is not in its encoding.
    """
    encoding = encoding_of(path, asked)
    try:
        with path.open(encoding=encoding, newline="") as file:
            yield file
    except UnicodeError as error:
        where = _where(path, encoding, error)
        raise NotRows(f"{path.name} is not {encoding}: {where}; allowed: {_ENCODINGS}") from None


def _where(path: Path, encoding: str, error: UnicodeError) -> str:
    """The byte and the line that cannot be read: of the whole file, not of the piece at hand."""
    try:
        path.read_bytes().decode(encoding)
    except UnicodeDecodeError as whole:
        line = whole.object[: whole.start].count(b"\n") + 1
        return f"byte 0x{whole.object[whole.start]:02x} in line {line}, {whole.reason}"
    except UnicodeError:
        pass
    return str(error)
