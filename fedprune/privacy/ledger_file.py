"""The ledger's file: lines, each with a digest of all before it; beside it how far they came.

A line is made from an occasion and a release, and these are made from it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedprune.codec.frozen import put_together
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.release import Occasion, Release
from fedprune.privacy.statement import Line
from fedprune.privacy.totals import INFINITY, told_number
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


def line_of(
    occasion: Occasion, release: Release, terms: AccountingTerms, epsilon: float, total: float
) -> Line:
    """The line that says a release, with epsilon and the total after it."""
    return {
        **vars(occasion),
        "partitions": _ranges(occasion.partitions),
        "asked": len(occasion.partitions),
        "sampling": _sampling(terms, occasion),
        "relation": terms.relation if release.noised else "",
        **vars(release),
        "epsilon": told_number(epsilon),
        "total": told_number(total),
    }


def epsilon_in(line: Line) -> float:
    """The epsilon that a line says."""
    number: float | str = line["epsilon"]
    return math.inf if isinstance(number, str) else number


def from_line(line: Mapping[str, Any]) -> tuple[Occasion, Release]:
    """The occasion and the release that a line was written from.

    Raises:
        KeyError, ValueError: it was written from none.
    """
    asked, text = line["asked"], line["partitions"]
    if type(asked) is not int or not isinstance(text, str) or _counted(text) != asked:
        raise ValueError("partitions: not as many as were asked")
    whole = {**line, "partitions": list(partitions_in(text))}
    occasion: Occasion = put_together(Occasion, _told(Occasion, whole), {})
    release: Release = put_together(Release, _told(Release, whole), {})
    for name in ("epsilon", "total"):
        put_together(str if line[name] == INFINITY else float, line[name], {}, name)
    for name in ("sampling", "relation"):
        put_together(str, line[name], {}, name)
    return occasion, release


def _told(kind: type, line: Line) -> Line:
    """The fields of a dataclass in a line, in the form of `fedprune.codec.frozen`."""
    maybe = {f.name for f in fields(kind) if "None" in str(f.type)}
    told = {f.name: line[f.name] for f in fields(kind)}
    return {n: [v] if n in maybe and v is not None else v for n, v in told.items()}


def _counted(text: str) -> int:
    """How many numbers a text of ranges names; -1: it is none of `_ranges`."""
    if re.fullmatch(r"([0-9]{1,15}(-[0-9]{1,15})?(,(?=[0-9])|$))*", text) is None:
        return -1
    ends = (part.partition("-") for part in filter(None, text.split(",")))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


def _sampling(terms: AccountingTerms, occasion: Occasion) -> str:
    """How those who were asked were chosen, in words."""
    asked, population = len(occasion.partitions), occasion.population
    if occasion.audience != "cohort" or (terms.sampling == "fixed" and asked >= population):
        return "all"
    if terms.sampling == "poisson":
        return f"poisson {terms.cohort / max(1, population):g}"
    if terms.sampling == "round-robin":
        return f"round-robin, {terms.cohort} of {population}"
    return f"fixed {asked} of {population}"


def _ranges(numbers: Sequence[int]) -> str:
    """Whole numbers as text, neighbours as a range: 0-3,7."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)


def partitions_in(text: str) -> Iterator[int]:
    """The partitions that a line of the ledger names: 0, 1, 2, 3, 7 for "0-3,7"."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
