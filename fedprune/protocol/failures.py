"""Why an answer does not count, in words that another process may print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Failure:
    """A partition whose answer does not count, and why."""

    partition: int
    phase: str
    field: str
    reason: str


def plain(text: object) -> str:
    """One line of at most 300 characters, without control characters: what others may print."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[:3000])
    return " ".join(shown.split())[:300]


def longest_about(asked: int, totals: Iterable[str] = ()) -> int:
    """Bytes that the fields of an answer of so many may take, with totals of these names.

    A reason is of 300 characters at most, each of which JSON may write as six, and so is a field.
    """
    return 2**12 * (1 + asked) + sum(64 + 6 * len(name) for name in totals)


def failure_said(said: Mapping[str, Any], phase: str) -> Failure:
    """The failure that another process described, in a phase that is known here.

    Raises:
        KeyError, TypeError, ValueError: it describes none.
    """
    if set(said) != {"partition", "phase", "field", "reason"}:
        raise ValueError("a failure has a partition, a phase, a field and a reason")
    if isinstance(said["partition"], bool) or not isinstance(said["partition"], int):
        raise TypeError("a partition is a whole number")
    return Failure(said["partition"], phase, plain(said["field"]), plain(said["reason"]))
