"""A user's own code that looks on while a run goes: `Callback`, given or of a plug-in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from fedprune.config import RunConfig
from fedprune.options.plugins import table_in
from fedprune.options.refusal import ConfigError
from fedprune.server.rows import Row
from fedprune.server.state import State
from fedprune.server.watch import Watch, both


@runtime_checkable
class Callback(Protocol):
    """Who is told how a run goes, on the server, whatever the engine.

    A class of yours that inherits from this one defines the methods that it needs; the others do
    nothing. The order of calls is `started`, `row` after each round of each arm, `ended`. With
    ``--seeds`` and in a study one value may see several runs, one after the other. An error that
    one of them raises ends the run; what was played is in the folder, and `--resume` goes on.
    """

    def started(self, config: RunConfig, folder: Path | None, rows: Sequence[Row]) -> None:
        """Before the first question.

        Args:
            config: of the run, resolved.
            folder: where its results go; None keeps nothing.
            rows: of rounds that are over already, where the run is resumed; `row` is not called
                for them again.
        """

    def row(self, row: Row) -> None:
        """After a round: its row, as in rounds.jsonl, of the arm ``row["arm"]``."""

    def ended(self, summary: Mapping[str, Any] | None) -> None:
        """After the last round: what summary.json says; None where an error ended the run."""


def callbacks_of(plugin: str) -> list[Callback]:
    """The values of a plug-in's ``CALLBACKS``."""
    try:
        return list(table_in(plugin, "CALLBACKS", Callback).values())
    except ImportError as error:
        raise ConfigError(str(error)) from None


@dataclass
class Telling:
    """All callbacks of a run, as a context around it."""

    callbacks: Sequence[Callback]  # who is told, in this order
    started: Sequence[Callback] = ()  # whether the run has come to its first question
    summary: Mapping[str, Any] | None = None  # what the run ended with, once it has

    def start(self, config: RunConfig, folder: Path | None, rows: Sequence[Row]) -> None:
        """Tell all of them that the run begins, with copies of the rows so far."""
        for callback in self.callbacks:
            self.started = [*self.started, callback]
            callback.started(config, folder, [dict(row) for row in rows])

    def beside(self, watch: Watch) -> Watch:
        """Who looks on already, and then the callbacks, for each of which the row is copied."""

        def row(told: Row, seconds: float, state: State) -> None:
            del seconds, state
            for callback in self.callbacks:
                callback.row(dict(told))

        return both(watch, replace(Watch(), row=row)) if self.callbacks else watch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for callback in self.started:
            callback.ended(self.summary if error is None else None)
