"""The book of what left a party: a line per release, written before the release, and epsilon.

``privacy.jsonl`` in the run's folder outlives a kill: what is in it may have been released, what is
not in it was not. Each line holds the digest of all before it and of itself (``chain``), and
``privacy.sha256`` says how far the file had come: lines that are changed or taken away are missed,
unless whoever did it changed both. It names who was asked, as ``rounds.jsonl`` does; both belong to
the folder, not to what is published.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedprune.options.refusal import ConfigError
from fedprune.privacy.accounting import smallest_epsilon
from fedprune.privacy.accounting_terms import SIMULATED, AccountingTerms
from fedprune.privacy.ledger_file import (
    END_NAME,
    LEDGER_NAME,
    append_lines,
    cut_unfinished_line,
    epsilon_in,
    from_line,
    line_of,
    linked,
    read_ledger,
)
from fedprune.privacy.release import Occasion, Release
from fedprune.privacy.statement import Line, statement
from fedprune.privacy.tally import Tally, with_releases
from fedprune.privacy.totals import INFINITY, total_privacy, unprotected

_ROUNDING = 1e-9
"""Noise that was sized to fill the budget does, but for the last digits."""


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

    terms: AccountingTerms
    path: Path | None = None
    epsilon: float = 0.0
    lines: list[Line] = field(default_factory=list)
    _tally: Tally = field(default_factory=Tally)
    _known: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    _times: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _reasons: dict[str, None] = field(default_factory=dict)
    _chain: str = ""

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

        A question that is asked again after a kill is another release: others may answer. Only the
        value that was stored may be sent again without asking, and so without booking. What costs
        nothing, or is covered by nothing, is booked once.

        Returns:
            `epsilon` with them.

        Raises:
            Spent: they would exceed the budget; nothing was written.
            ValueError: dp-accounting is needed and not installed.
        """
        fresh = [r for r in releases if r.noised or _key(occasion, r) not in self._known]
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
        if self.path is not None:
            lines = self.lines[-len(fresh) :]
            self._chain = append_lines(self.path, lines, self._chain, len(self.lines))
        return self.epsilon

    def times(self, occasion: Occasion) -> int:
        """How often a question was booked by now."""
        return self._times.get(_question(occasion), 0)

    def _with(self, occasion: Occasion, releases: Sequence[Release]) -> tuple[Tally, float]:
        tally = with_releases(self._tally, self.terms, occasion, releases)
        if tally == self._tally:
            return tally, self.epsilon
        epsilon = smallest_epsilon(tally.accounts(), self.terms.relation, self.terms.delta)
        return tally, max(self.epsilon, epsilon)

    def _keep(
        self, occasion: Occasion, releases: Sequence[Release], tally: Tally, epsilon: float
    ) -> None:
        self._tally, self.epsilon = tally, epsilon
        self._reasons |= {
            r.reason or f"{r.quantity} as they are": None for r in releases if not r.covered
        }
        self._known.update(_key(occasion, r) for r in releases)
        most = max((self._known[_key(occasion, r)] for r in releases), default=0)
        asked = _question(occasion)
        self._times[asked] = max(self._times.get(asked, 0), most)
        self.lines += [line_of(occasion, r, self.terms, self.epsilon, self.total) for r in releases]

    def _replay(self, lines: Sequence[Line]) -> None:
        """Take what a file holds as booked: every line of it, whatever the noise."""
        for number, line in enumerate(lines, 1):
            self._chain = linked(self._chain, line)
            try:
                occasion, release = from_line(line)
            except (KeyError, ValueError) as error:
                raise ValueError(f"{LEDGER_NAME}: line {number} is no release: {error}") from None
            tally = with_releases(self._tally, self.terms, occasion, [release])
            self._keep(occasion, [release], tally, max(self.epsilon, epsilon_in(line)))
            self.lines[-1] = line
        accounts = self._tally.accounts()
        now = smallest_epsilon(accounts, self.terms.relation, self.terms.delta)
        self.epsilon = max(self.epsilon, now)

    def closing(self) -> dict[str, Any]:
        """What the run's summary says of privacy.

        Returns:
            ``rdp``: `epsilon`. ``pld``: the same by privacy loss distributions, smaller, or None,
            and then ``pld_why_not`` says why. ``epsilon``: the smaller of both; ``total``: that, or
            "infinity", for the ``reasons``. ``delta``; ``curve``: pairs of delta and epsilon, by
            ``curve_by``; ``mu`` of Gaussian DP, and how it was had (``mu_by``); ``account``, the
            bound taken ("participation", "amplification": `accounting`); ``unit``, ``relation``;
            ``noise``: where it came from, "" without any; ``statement``, in words; ``secure``,
            where sums are: ``neighbours`` and ``threshold`` in a sum of a whole cohort,
            ``colluders``, how many neighbours a lying server needs. Infinite numbers are
            "infinity".
        """
        uncovered, accounts = list(self.uncovered), self._tally.accounts()
        if uncovered and not any(map(any, accounts.values())):
            told = unprotected()
        else:
            told = total_privacy(accounts, self.terms, self.epsilon)
        told |= {"total": INFINITY if uncovered else told["epsilon"], "reasons": uncovered}
        told |= {"noise": self._noise(), "unit": self.terms.unit, "relation": self.terms.relation}
        if self.terms.neighbours:
            told["secure"] = {
                "neighbours": self.terms.neighbours,
                "threshold": self.terms.threshold,
                "colluders": self.terms.colluders,
            }
        words = statement(self.terms, self.lines, told["epsilon"], told["account"])
        return told | {"delta": self.terms.delta, "statement": words}

    def _noise(self) -> str:
        """Where noise came from, if any did."""
        if not any(line["z"] or line["spread"] or line["pure"] for line in self.lines):
            return ""
        return SIMULATED if self.terms.simulated else "of the operating system's generator"


def open_ledger(path: Path | None, terms: AccountingTerms, *, resume: bool = False) -> Ledger:
    """A ledger at the path, or in memory only.

    With `resume` it goes on from the file; a last line that a crash cut short is cut off, as it was
    written before its release, which so never came.

    Raises:
        ConfigError: there is a ledger already, of a run that is not resumed; or one that is to be
            gone on from was changed, cut or taken away.
    """
    ledger = Ledger(terms, path)
    if path is None or not (path.exists() or path.with_name(END_NAME).exists()):
        return ledger
    if not resume:
        raise ConfigError(
            f"out={str(path.parent)!r}: {path.name} holds a run's releases; "
            f"allowed: another folder, or --resume {path.parent}"
        )
    try:
        ledger._replay(read_ledger(path))
    except ValueError as error:
        raise ConfigError(
            f"resume={str(path.parent)!r}: {error}; allowed: a run's folder as it was left"
        ) from None
    cut_unfinished_line(path)
    return ledger


def _key(occasion: Occasion, release: Release) -> tuple[Any, ...]:
    return (*_question(occasion), release)


def _question(occasion: Occasion) -> tuple[Any, ...]:
    # A question that has a name is the same wherever a resumed run puts it again.
    return (occasion.arm, occasion.round, occasion.digest or occasion.order)
