"""The ledger's file: lines, each with a digest of all before it; beside it how far they came."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from fedprune.privacy.statement import Line
from fedprune.runtime.files import sync_folder, write_atomically
from fedprune.runtime.json_text import read_object, text_of, whole_number

LEDGER_NAME = "privacy.jsonl"

END_NAME = "privacy.sha256"


def read_ledger(path: Path) -> list[Line]:
    """The lines of a ledger; none where there never was one. A last line cut short is left out.

    Raises:
        ValueError: a line was changed, or lines are gone; the file is named.
    """
    lines: list[Line] = []
    chain, chains = "", [""]
    for number, text in enumerate(_whole_lines(path), 1):
        try:
            line = json.loads(text)
            said = line.pop(_LINK)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{path.name}: line {number} is damaged") from None
        chain = linked(chain, line)
        if said != chain:
            raise ValueError(f"{path.name}: line {number}, or one before it, was changed")
        lines.append(line)
        chains.append(chain)
    _check_end(path, chains)
    return lines


def _check_end(path: Path, chains: Sequence[str]) -> None:
    """Refuse a ledger that ends before where it was said to end.

    Lines after that are those that were written just before a kill.
    """
    end = path.with_name(END_NAME)
    if not end.is_file():
        if len(chains) > 1:
            raise ValueError(f"{END_NAME} is gone")
        return
    try:
        said = read_object(end.read_bytes())
        found = chains[whole_number(said, "lines")] == text_of(said, "chain")
    except ValueError:
        raise ValueError(f"{END_NAME} is damaged") from None
    except IndexError:
        found = False
    if not found:
        raise ValueError(f"{path.name} was cut, changed or taken away")


_LINK = "chain"


def append_lines(path: Path, lines: Sequence[Line], chain: str, count: int) -> str:
    """Write lines and wait until they are on the disk.

    `chain` is the digest of the lines before them, `count` how many lines there are with them.

    Returns:
        The digest of all lines.
    """
    new = not path.exists()
    if new:  # so that a kill after the first lines leaves what says that they count
        _write_end(path, 0, "")
    with path.open("a") as file:
        for line in lines:
            chain = linked(chain, line)
            file.write(json.dumps({**line, _LINK: chain}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)
    _write_end(path, count, chain)
    return chain


def _write_end(path: Path, lines: int, chain: str) -> None:
    end = json.dumps({"lines": lines, "chain": chain})
    write_atomically(path.with_name(END_NAME), end.encode())


def cut_unfinished_line(path: Path) -> None:
    """Cut off a last line without an end, which a kill left."""
    if path.exists():
        with path.open("r+") as file:
            file.truncate(len("".join(_whole_lines(path)).encode()))


def linked(before: str, line: Line) -> str:
    """The digest of a line and all before it, hex."""
    return hashlib.sha256(f"{before}{json.dumps(line)}".encode()).hexdigest()


def _whole_lines(path: Path) -> list[str]:
    """Lines with their ends, without a last one that has none; none without a file."""
    if not path.is_file():
        return []
    return [x for x in path.read_text().splitlines(keepends=True) if x.endswith("\n")]
