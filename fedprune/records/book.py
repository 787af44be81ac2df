"""The book of a run: rows, checkpoints and arms, in memory and in its folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedprune.config import RunConfig
from fedprune.config.options import OWN_START
from fedprune.methods.catalog import memories_of
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.port import Ask, Exchange, Port
from fedprune.records.arms import PRUNED, arm_names
from fedprune.records.bound import Going
from fedprune.records.checkpoint import save_state
from fedprune.records.folder import (
    begin,
    check_resumable,
    checkpoint_path,
    gone_on,
    growing,
    record,
    rewind,
)
from fedprune.rounds import loop
from fedprune.server.plan import Plan
from fedprune.server.rows import Row
from fedprune.server.state import BeforeTest, State, reverted, untested
from fedprune.server.watch import Watch

WARM = "warm"  # Name of the checkpoint at the end of the warm-up, which all arms share


@dataclass
class RunBook:
    """The rows of every arm as they come, in memory and in the folder."""

    config: RunConfig  # of the run
    folder: Path | None  # where its results go; None keeps nothing
    watch: Watch  # who looks on
    rows: list[Row]  # of all arms so far
    states: dict[str, State]  # where arms stood that have begun, and the end of the warm-up
    differences: Sequence[str] = ()  # what the run goes on with that it did not begin with

    def start(self, arm: str, fresh: State) -> State:
        """Where an arm begins: its checkpoint, the shared end of the warm-up, or the beginning.

        Up to the end of the warm-up nothing tells most arms apart, so it is run once for them.
        """
        if arm in self.states:
            return untested(self.states[arm], self.config.rounds)
        if WARM not in self.states or arm in OWN_START:
            return fresh
        warm = self.states[WARM]
        for row in [r for r in self.rows if r["arm"] == PRUNED and r["round"] <= warm.round]:
            self._keep({**row, "arm": arm}, 0.0, warm)
        return warm

    def play(self, arm: str, state: State, plan: Plan, port: Port) -> State:
        """Run an arm from a state to its end, a row at a time."""
        clock = time.perf_counter()
        for state, row in loop(state, plan, port):  # noqa: B020 (the last state is the result)
            now = time.perf_counter()
            if arm == PRUNED and self.config.baselines and state.round == self.config.warmup:
                self.states[WARM] = state
                self.keep(WARM, state)
            self._keep({"arm": arm, **row}, now - clock, state)
            clock = now
        return state

    def _keep(self, row: Row, seconds: float, state: State) -> None:
        self.rows.append(row)
        if self.folder is not None:
            record(self.folder, row, seconds, state)
        self.watch.row(row, seconds, state)

    def tested(self, arm: str, played: State, end: State) -> None:
        """Keep the test totals with an arm's last checkpoint, and what asking for them changed."""
        if self.folder is None or played.tested is not None or not end.tested:
            return
        state = reverted(played, end)
        state = replace(
            state,
            tested=end.tested,
            tested_own=end.tested_own,
            tested_new=end.tested_new,
            before_test=BeforeTest(self.config.rounds, played.book),
        )
        self.keep(arm, state)

    def keep(self, name: str, state: State) -> None:
        """Keep a state as the checkpoint of that name."""
        if self.folder is not None:
            save_state(state, checkpoint_path(self.folder, name), growing(self.folder))

    def shown(self, arm: str, port: Port) -> Port:
        """The port, with every exchange announced to who looks on, one kind of question at once."""

        def put(asks: Sequence[Ask]) -> list[Aggregate]:
            kinds = dict.fromkeys(ask.question.kind for ask in asks)
            for those in ([a for a in asks if a.question.kind == kind] for kind in kinds):
                self.watch.phase(arm, those[0].question, sum(len(a.partitions) for a in those))
            return port.put(asks)

        return replace(port, ask=Exchange(put))


def open_book(config: RunConfig, folder: Path | None, going: Going, watch: Watch) -> RunBook:
    """A new book, or the one of a run that goes on.

    Raises:
        ConfigError: there is nothing to go on with, or something else than it began with.
    """
    if folder is None:
        return RunBook(config, None, watch, [], {})
    if not going.resume:
        begin(folder, config, going.data())
        return RunBook(config, folder, watch, [], {})
    known = check_resumable(folder)
    differences = gone_on(folder, config, going.data(), anyway=going.anyway)
    rows, states = rewind(
        folder, [*arm_names(config), WARM], known, memories_of(config.plugin), going.held
    )
    return RunBook(config, folder, watch, rows, states, differences)
