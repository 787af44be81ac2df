"""A device's ledger of its own: what it has given, in ``<data>.given``, beside its data.

It is there where a floor counts (`fedprune.engines.flower.node_config`), and is written before
anything leaves. Rounds and bytes are in ``given.jsonl``. Epsilon is booked as the server's ledger
books it (`fedprune.privacy.ledger`), a ledger for each configuration, but for this device's data
alone and as asked: the device knows when it was, so being drawn by chance protects nothing here.
Budgets of different configurations add up. Who takes the folder away begins anew.
"""

from __future__ import annotations

import fcntl
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedprune.client.host import Host
from fedprune.client.serving import understood_question
from fedprune.codec.wire import Packet
from fedprune.config import RunConfig
from fedprune.config.kinds import KINDS
from fedprune.config.terms import accounting_terms_of
from fedprune.engines.flower.node_config import Floors, below
from fedprune.options.refusal import Refused
from fedprune.privacy.ledger import Spent, open_ledger
from fedprune.privacy.ledger_file import (
    LEDGER_NAME,
    append_lines,
    cut_unfinished_line,
    epsilon_in,
    linked,
    read_ledger,
)
from fedprune.privacy.release import Occasion, Release
from fedprune.privacy.statement import Line
from fedprune.protocol.limits import most_votes
from fedprune.protocol.messages import Question
from fedprune.protocol.releases import releases_of
from fedprune.tasks.options import Data

GIVEN_NAME = "given.jsonl"


@dataclass(frozen=True)
class DeviceLedger:
    """Where a device writes down what it gives in a run: a folder beside its data.

    By the name of the run's configuration and Flower's number of the run.
    """

    folder: Path
    floors: Floors
    configuration: str
    run: int


def admit(here: DeviceLedger, host: Host, packet: Packet, partitions: Sequence[int]) -> None:
    """Write down that a question is about to be answered.

    Raises:
        Refused: it would be a round or an epsilon too much; then nothing was written.
        ConfigError, ValueError: the ledger was changed, cut or taken away.
    """
    if not here.floors.counting:
        return
    question, form, layout = understood_question(host, packet)
    most = most_votes(question, host.config, form, layout)
    released = releases_of(question, form, host.config, most)
    with _alone(here):
        trains = KINDS[question.kind].asks == "cohort"  # measuring takes no round
        if trains:
            _check_round(here, question.round)
        if here.floors.max_epsilon is not None:
            _check_covered(here, host.config, released, partitions)
            _book_epsilon(here, host.config, question, released, partitions)
        if trains:
            _write(here, {"run": here.run, "round": question.round})


def charge(here: DeviceLedger, size: int) -> None:
    """Write down that so many bytes are about to leave.

    Raises:
        Refused: they are too many; then nothing was written.
        ValueError: the ledger was changed, cut or taken away.
    """
    if not here.floors.counting:
        return
    with _alone(here):
        before = sum(int(line.get("bytes", 0)) for line in _lines(here))
        most = here.floors.max_bytes
        if most is not None and before + size > most:
            why = f"{size} bytes more than the {before} that were sent"
            raise below("max-bytes", most, why, f"{most} in all, by this device's ledger")
        _write(here, {"bytes": size})


def _check_covered(
    here: DeviceLedger, c: Data, released: Sequence[Release], partitions: Sequence[int]
) -> None:
    bare = [r.quantity for r in released if r.way == "up" and not r.covered]
    open_ = [p for p in partitions if p >= c.clients - c.panel]
    if bare or open_:
        why = f"{bare[0]} would leave without noise" if bare else f"client {open_[0]} is in --panel"
        most = here.floors.max_epsilon
        raise below("max-epsilon", most, why, "a run in which noise covers all that leaves")


def _book_epsilon(
    here: DeviceLedger,
    c: RunConfig,
    question: Question,
    released: Sequence[Release],
    partitions: Sequence[int],
) -> None:
    own, most = here.folder / here.configuration, here.floors.max_epsilon or 0.0
    ledgers = (read_ledger(p / LEDGER_NAME) for p in sorted(here.folder.glob("*/")) if p != own)
    others = sum(epsilon_in(lines[-1]) for lines in ledgers if lines)
    if others >= most:
        raise _spent(most, f"other runs were given {others:.4g}")
    own.mkdir(exist_ok=True)
    terms = replace(accounting_terms_of(c), budget=most - others)
    ledger = open_ledger(own / LEDGER_NAME, terms, resume=True)
    # Everyone is asked, as it were: so that no chance of being drawn is counted on.
    what, asked = (question.round, question.kind, 0, "everyone"), tuple(partitions)
    try:
        ledger.book(Occasion("pruned", *what, asked, c.clients), released)
    except Spent as spent:
        raise _spent(most, f"{spent}, and other runs were given {others:.4g}") from None


def _spent(most: float, why: str) -> Refused:
    return below("max-epsilon", most, why, f"{most:g} in all, by this device's ledger")


def _check_round(here: DeviceLedger, round_: int) -> None:
    most = here.floors.max_rounds
    known = {(line["run"], line["round"]) for line in _lines(here) if "round" in line}
    if most is not None and (here.run, round_) not in known and len(known) >= most:
        why = f"this device has answered in {len(known)} rounds"
        raise below("max-rounds", most, why, f"{most} in all, by its ledger")


def _lines(here: DeviceLedger) -> list[Line]:
    return read_ledger(here.folder / GIVEN_NAME)


def _write(here: DeviceLedger, line: Line) -> None:
    path, lines = here.folder / GIVEN_NAME, _lines(here)
    cut_unfinished_line(path)
    chain = functools.reduce(linked, lines, "")
    append_lines(path, [line], chain, len(lines) + 1)


@contextmanager
def _alone(here: DeviceLedger) -> Iterator[None]:
    """Flower may answer two messages at once, in two processes."""
    here.folder.mkdir(exist_ok=True)
    with (here.folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
