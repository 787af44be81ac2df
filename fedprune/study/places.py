"""Where the runs of a study are played: on this machine, or on the nodes of a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedprune.options.refusal import ConfigError, counted
from fedprune.study.cells import GridCell


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
