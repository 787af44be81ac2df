"""The page of a run that still goes: written anew as rounds end, and when something ends it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedprune.config import RunConfig
from fedprune.report.callback import Callback
from fedprune.runtime.sums import SUMMARY_NAME
from fedprune.server.rows import Row

log = logging.getLogger("fedprune")

FIRST_PAGE = 20.0
"""Seconds from a run's first question to its first page; one that is shorter has it at its end."""

SHARE = 0.05  # The largest part of a run's time that its page takes, while it goes


class LivePage(Callback):
    """Writes report.html and plots/ into the folder of a run.

    After a round, when enough time has passed since the last page that `SHARE` holds; and when an
    error or an interruption ends a run that took longer than `FIRST_PAGE`, with every round that
    ended. Whoever ends a run well writes the page itself, with the summary. Nothing is drawn of a
    run without a folder, nor of one that had ended and goes on for more rounds: its folder has the
    page and the summary of its first end until it ends again. A page that cannot be written is a
    line in the log; the run goes on.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.first = self.due = 0.0
        self.rows = 0

    def started(self, config: RunConfig, folder: Path | None, rows: Sequence[Row]) -> None:
        """Know the folder, and wait for the first page."""
        del config
        had_ended = folder is not None and (folder / SUMMARY_NAME).exists()
        self.folder, self.rows = None if had_ended else folder, len(rows)
        self.first = self.due = time.monotonic() + FIRST_PAGE

    def row(self, row: Row) -> None:
        """Write the page, if it is due."""
        del row
        self.rows += 1
        if time.monotonic() >= self.due:
            self._write()

    def ended(self, summary: Mapping[str, Any] | None) -> None:
        """Write the page of a run that was ended before its end."""
        if summary is None and self.rows and time.monotonic() >= self.first:
            self._write()

    def _write(self) -> None:
        if self.folder is None:
            return
        began = time.monotonic()
        # matplotlib takes a second to import: workers, and runs without a folder, need it not.
        from fedprune.report.page import write_report

        try:
            write_report(self.folder)
        except (OSError, ValueError) as error:
            log.warning("no page now: %s", error)
        ended = time.monotonic()
        self.due = ended + (ended - began) / SHARE
