"""The book of what left a party: a line per release, written before the release, and epsilon.

``privacy.jsonl`` in the run's folder outlives a kill: what is in it may have been released, what is
not in it was not. It names who was asked, as ``rounds.jsonl`` does; both belong to the folder, not
to what is published.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fedprune.config import ConfigError
from fedprune.privacy.accounting import Tally, added, rdp_epsilon
from fedprune.privacy.closing import INFINITY, closed, told_number, unprotected
from fedprune.privacy.release import Occasion, Release
from fedprune.privacy.statement import statement
from fedprune.privacy.terms import Terms, terms_of

__all__ = [
    "LEDGER_NAME",
    "Ledger",
    "Spent",
    "Terms",
    "numbers_in",
    "open_ledger",
    "read_ledger",
    "terms_of",
]

LEDGER_NAME = "privacy.jsonl"
_ROUNDING = 1e-9
"""Noise that was sized to fill the budget does, but for the last digits."""

Line = dict[str, Any]


class Spent(Exception):
    """The next releases would exceed the budget: nothing of them was booked, nothing may leave."""


@dataclass
class Ledger:
    """What has left, in memory and in the run's folder.

    Attributes:
        terms: what all releases have in common.
        path: of the file; None: only in memory.
        epsilon: at the terms' delta, of all that is covered, by Rényi divergences; 0 where nothing
            is. It never falls. What is not covered is in `uncovered`, and then the total is
            infinite whatever epsilon is.
        lines: as in the file.
    """

    terms: Terms
    path: Path | None = None
    epsilon: float = 0.0
    lines: list[Line] = field(default_factory=list)
    _tally: Tally = field(default_factory=Tally)
    _known: set[tuple[Any, ...]] = field(default_factory=set)
    _reasons: dict[str, None] = field(default_factory=dict)

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Why something is not covered: each reason once, in the order in which they came."""
        return tuple(self._reasons)

    @property
    def total(self) -> float:
        """Epsilon of all that left: infinite as soon as anything of it is not covered."""
        return math.inf if self._reasons else self.epsilon

    def book(self, occasion: Occasion, releases: Sequence[Release]) -> float:
        """Write down what is about to leave. Call it before the question is put.

        A question that is asked again after a kill and answered with the same seeded noise is the
        same release: it is in the book already. With secret noise it is another one.

        Args:
            occasion: when, and who is asked.
            releases: all that leaves then, up and down.

        Returns:
            `epsilon` with them.

        Raises:
            Spent: they would exceed the budget; nothing was written.
            ValueError: dp-accounting is needed and not installed.
        """
        fresh = [r for r in releases if not self._has(occasion, r)]
        if not fresh:
            return self.epsilon
        tally, epsilon = self._with(occasion, fresh)
        budget = self.terms.budget
        if budget is not None and epsilon > budget * (1 + _ROUNDING):
            what = ", ".join(dict.fromkeys(r.quantity for r in fresh if r.noised))
            raise Spent(
                f"epsilon={budget:g}: {what} of round {occasion.round} would bring it to "
                f"{epsilon:.4g}, after {self.epsilon:.4g}"
            )
        self._keep(occasion, fresh, tally, epsilon)
        self._write(self.lines[-len(fresh) :])
        return self.epsilon

    def _has(self, occasion: Occasion, release: Release) -> bool:
        return self.terms.noise_source == "seeded" and _key(occasion, release) in self._known

    def _with(self, occasion: Occasion, releases: Sequence[Release]) -> tuple[Tally, float]:
        tally = added(self._tally, self.terms, occasion, releases)
        if tally == self._tally:
            return tally, self.epsilon
        epsilon = rdp_epsilon(tally.profiles(), self.terms.relation, self.terms.delta)
        return tally, max(self.epsilon, epsilon)

    def _keep(
        self, occasion: Occasion, releases: Sequence[Release], tally: Tally, epsilon: float
    ) -> None:
        self._tally, self.epsilon = tally, epsilon
        self._reasons |= {
            r.reason or f"{r.quantity} as they are": None for r in releases if not r.covered
        }
        self._known |= {_key(occasion, r) for r in releases}
        self.lines += [self._line(occasion, r) for r in releases]

    def _line(self, occasion: Occasion, release: Release) -> Line:
        asked = len(occasion.partitions)
        return {
            **asdict(occasion),
            "partitions": _ranges(occasion.partitions),
            "asked": asked,
            "sampling": _sampling(self.terms, occasion),
            "relation": self.terms.relation if release.noised else "",
            **asdict(release),
            "epsilon": told_number(self.epsilon),
            "total": told_number(self.total),
        }

    def _write(self, lines: Sequence[Line]) -> None:
        if self.path is None:
            return
        with self.path.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _replay(self, lines: Sequence[Line]) -> None:
        """Take what a file holds as booked: every line of it, whatever the noise."""
        for line in lines:
            occasion, release = _from_line(line)
            tally = added(self._tally, self.terms, occasion, [release])
            self._keep(occasion, [release], tally, max(self.epsilon, _value(line["epsilon"])))
            self.lines[-1] = line
        profiles = self._tally.profiles()
        now = rdp_epsilon(profiles, self.terms.relation, self.terms.delta)
        self.epsilon = max(self.epsilon, now)

    def closing(self) -> dict[str, Any]:
        """What the run's summary says of privacy.

        Returns:
            ``rdp``: `epsilon`. ``pld``: the same by privacy loss distributions, smaller, or None,
            and then ``pld_why_not`` says why. ``epsilon``: the smaller of both; ``total``: that, or
            "infinity", for the ``reasons``. ``delta``; ``curve``: pairs of delta and epsilon, by
            ``curve_by``; ``mu`` of Gaussian DP, and how it was had (``mu_by``); ``unit``,
            ``relation``; ``statement``, in words. Infinite numbers are "infinity".
        """
        uncovered, profiles = list(self.uncovered), self._tally.profiles()
        if uncovered and not any(profiles):
            told = unprotected()
        else:
            told = closed(profiles, self.terms, self.epsilon)
        told |= {"total": INFINITY if uncovered else told["epsilon"], "reasons": uncovered}
        told |= {"unit": self.terms.unit, "relation": self.terms.relation}
        words = statement(self.terms, self.lines, told["epsilon"])
        return told | {"delta": self.terms.delta, "statement": words}


def open_ledger(path: Path | None, terms: Terms, *, resume: bool = False) -> Ledger:
    """A ledger at the path, or in memory only.

    Args:
        path: of the file; None keeps nothing on disk.
        terms: of the run.
        resume: go on from the file; a last line that a crash cut short is cut off, as it was
            written before its release, which so never came.

    Raises:
        ConfigError: there is a ledger already, of a run that is not resumed.
    """
    ledger = Ledger(terms, path)
    if path is None or not path.exists():
        return ledger
    if not resume:
        raise ConfigError(
            f"out={str(path.parent)!r}: {path.name} holds a run's releases; "
            f"allowed: another folder, or --resume {path.parent}"
        )
    whole = _whole_lines(path)
    with path.open("r+") as file:
        file.truncate(len("".join(whole).encode()))
    ledger._replay([json.loads(line) for line in whole])
    return ledger


def read_ledger(path: Path) -> list[Line]:
    """The lines of a ledger; none where there is no file. A last line cut short is left out."""
    return [json.loads(line) for line in _whole_lines(path)] if path.is_file() else []


def _whole_lines(path: Path) -> list[str]:
    """Lines with their ends, without a last one that has none or is not JSON."""
    lines = [x for x in path.read_text().splitlines(keepends=True) if x.endswith("\n")]
    try:
        json.loads(lines[-1] if lines else "{}")
    except json.JSONDecodeError:
        return lines[:-1]
    return lines


def _key(occasion: Occasion, release: Release) -> tuple[Any, ...]:
    # A question that has a name is the same wherever a resumed run puts it again.
    return (occasion.arm, occasion.round, occasion.digest or occasion.order, release)


def _from_line(line: Mapping[str, Any]) -> tuple[Occasion, Release]:
    """The occasion and the release that a line was written from."""
    what = {f.name: line[f.name] for f in fields(Release)}
    what |= {key: tuple(what[key]) for key in ("fields", "spread") if what[key] is not None}
    when = {f.name: line[f.name] for f in fields(Occasion)}
    when["partitions"] = tuple(numbers_in(when["partitions"]))
    return Occasion(**when), Release(**what)


def _sampling(terms: Terms, occasion: Occasion) -> str:
    """How those who were asked were chosen, in words."""
    asked, population = len(occasion.partitions), occasion.population
    if occasion.audience != "cohort" or (terms.sampling == "fixed" and asked >= population):
        return "all"
    if terms.sampling == "poisson":
        return f"poisson {terms.cohort / max(1, population):g}"
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


def numbers_in(text: str) -> Iterator[int]:
    """The partitions that a line of the ledger names: 0, 1, 2, 3, 7 for "0-3,7"."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _value(number: float | str) -> float:
    return math.inf if isinstance(number, str) else number
