"""The cells of a study, each played as a process of its own: what fails there ends nothing here.

On this machine, or on the nodes of a Ray cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedprune.config import to_toml
from fedprune.options.refusal import ConfigError, counted
from fedprune.records.folder import CONFIG_NAME
from fedprune.runtime.files import write_atomically
from fedprune.runtime.sums import SUMMARY_NAME, SUMS_NAME, check_sums
from fedprune.study.cells import GridCell

_POLL = 0.1  # Seconds between two looks at the processes

CELLS = "cells"


@dataclass(frozen=True)
class CellEnded:
    """How far a study has come."""

    cell: GridCell  # that has ended
    seconds: float  # it took; 0.0: it was there already
    error: str  # the last line that it wrote where it left no result; "": it left one
    done: int  # cells that have ended, this one among them
    # seconds that the others may take, by those that were played; None: not known yet
    left: float | None


def cell_folder(cell: GridCell, out: Path) -> Path:
    """Where the run of a cell is."""
    return out / CELLS / cell.name


def log_of(cell: GridCell, out: Path) -> Path:
    """What the run of a cell wrote on its screen."""
    return out / CELLS / f"{cell.name}.log"


def is_there(folder: Path) -> bool:
    """Whether a folder holds a finished run, every file of which is as it was written."""
    try:
        check_sums(folder, ended=True)
    except (OSError, ValueError):
        return False
    return True


def play(
    cells: Sequence[GridCell],
    out: Path,
    place: RunPlace,
    jobs: int,
    tell: Callable[[CellEnded], None],
) -> None:
    """Play the cells that are not there yet; one that was interrupted goes on where it was.

    `cells`: of the study. A cell has the folder of its digest, so one that is there was made from
    the same configuration, data and versions. `tell`: told of every cell that has ended. What it
    raises ends those that run, too.
    """
    (out / CELLS).mkdir(parents=True, exist_ok=True)
    there = [cell for cell in cells if is_there(cell_folder(cell, out))]
    for number, cell in enumerate(there, 1):
        tell(CellEnded(cell, 0.0, "", number, None))
    waiting = [cell for cell in cells if cell not in there]
    running, took = list[_Playing](), list[float]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Playing(waiting[0], _started(waiting.pop(0), out, place)))
            time.sleep(_POLL)
            for playing in [p for p in running if p.process.poll() is not None]:
                running.remove(playing)
                took.append(time.perf_counter() - playing.since)
                left = sum(took) / len(took) * (len(waiting) + len(running)) / jobs
                error = _error_of(playing.cell, out)
                tell(CellEnded(playing.cell, took[-1], error, len(there) + len(took), left))
    finally:
        _end([playing.process for playing in running])


@dataclass(frozen=True)
class _Playing:
    cell: GridCell
    process: RunProcess
    since: float = field(default_factory=time.perf_counter)


def _started(cell: GridCell, out: Path, place: RunPlace) -> RunProcess:
    shows = cell_folder(cell, out) / SUMS_NAME
    return place.start(lambda: _words(cell, out), shows, log_of(cell, out))


def _words(cell: GridCell, out: Path) -> list[str]:
    """The command that plays a cell, or goes on with it, without the program's name."""
    folder, file = cell_folder(cell, out), out / CELLS / f"{cell.name}.toml"
    write_atomically(file, to_toml(cell.config).encode())
    begun = (folder / CONFIG_NAME).is_file() and not (folder / SUMMARY_NAME).is_file()
    which = ["--resume", str(folder)] if begun else ["--config", str(file), "--out", str(folder)]
    code = ["--plugin", cell.config.plugin] if cell.config.plugin else []
    return ["run", *which, *code]


def _error_of(cell: GridCell, out: Path) -> str:
    return "" if is_there(cell_folder(cell, out)) else last_line(log_of(cell, out))


def last_line(log: Path) -> str:
    """The last line of a log that says something, without the program's name."""
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].partition("error: ")[2] or lines[-1] if lines else "it wrote nothing"


def _end(processes: Sequence[RunProcess]) -> None:
    """Interrupt what still runs, and see it end: its checkpoints are whole then."""
    for process in processes:
        with suppress(OSError):
            process.terminate()
    for process in processes:
        try:
            process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


_PATIENCE = 30  # Seconds that a run may take to end when it is told to


class RunProcess(Protocol):
    """A run that was begun: what of `subprocess.Popen` a study wants of it."""

    def poll(self) -> int | None:
        """The exit code; None: it still runs."""

    def terminate(self) -> None:
        """Interrupt it: it ends at a checkpoint."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or `subprocess.TimeoutExpired`."""


@dataclass(frozen=True)
class RunPlace:
    """Where runs are played."""

    # begins one. It is given what gives the words of the command, a file that is there when the run
    # has ended well, and the log.
    start: Callable[[Callable[[], list[str]], Path, Path], RunProcess]
    jobs: int  # how many are played at once, unless somebody says
    told: str = ""  # in words; "": here


@contextmanager
def place_at(address: str, out: Path, cells: Sequence[GridCell]) -> Iterator[RunPlace]:
    """Within the block the cluster at an address, or this machine where there is none.

    Raises:
        ConfigError: the cluster, a node of it or a cell cannot take part.
    """
    if not address:
        yield RunPlace(_started_here, len(os.sched_getaffinity(0)))
        return
    for cell in cells:
        if cell.config.engine != "inline":
            raise ConfigError(
                f"engine={cell.config.engine!r}: of cell {cell.name}, and a node has one process "
                "for it; allowed beside --ray-address: inline"
            )
    from fedprune.engines.ray.spreading import spread_over

    with spread_over(address, out) as spread:
        told = f" on {counted(spread.nodes, 'node')} of the cluster at {address}"
        yield RunPlace(spread.start, spread.cpus, told)


def _started_here(words: Callable[[], list[str]], _: Path, log: Path) -> subprocess.Popen[bytes]:
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "fedprune", *words()],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
        )
