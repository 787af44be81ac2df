"""A line of the ledger: from an occasion and a release, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from fedprune.codec.frozen import put_together
from fedprune.privacy.accounting_terms import AccountingTerms
from fedprune.privacy.release import Occasion, Release
from fedprune.privacy.statement import Line
from fedprune.privacy.totals import INFINITY, told_number


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
