"""Seconds from the start of a process: to help, to a refusal, to the end of the first round.

    python benchmarks/start.py [--repeats 3] [--no-ray]

Beside each the same in units of ``import torch`` alone, measured in turns with it: that carries
over to other machines, and to one that does other work, the seconds do not. Seconds of processors
are those of the process itself until then: Ray's workers are others. The exit code is 1 where a
target is missed by both clocks, so that other work on the machine is not taken for a slow start.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from at_start import ROOT, parser_of, processors

RUN = "simulations/run.py --out {out}"
FIRST = re.compile(r"\S+ +1 +\w.* ([\d.]+)$")
"""The line about round one, and its last column: seconds of the round itself."""


@dataclass(frozen=True)
class Start:
    """What is timed.

    Attributes:
        line: arguments of Python; {out} is a new folder.
        within: seconds that are wanted; None: what the others are compared with.
        until: the line that ends it; None: the end of the process.
    """

    line: str
    within: float | None
    until: re.Pattern[str] | None = None


STARTS = {
    "import torch": Start("-c import\ttorch", None),
    "help": Start("-m fedprune --help", 0.3),
    "version": Start("-m fedprune --version", 0.3),
    "help of run": Start("-m fedprune run --help", 0.3),
    "no such option": Start("-m fedprune run --sparsiti 0.5", 0.3),
    "no such name": Start("-m fedprune run --score tailor", 0.3),
    "out of range": Start("-m fedprune run --sparsity 2", 0.3),
    "digits, inline": Start(f"{RUN} --engine inline --task digits", 3.0, FIRST),
    "default task, inline": Start(f"{RUN} --engine inline", 6.0, FIRST),
    "digits, Ray": Start(f"{RUN} --engine ray --workers 2 --task digits", 12.0, FIRST),
    "default task, Ray": Start(f"{RUN} --engine ray --workers 2", 12.0, FIRST),
}


def timed(start: Start) -> tuple[float, float, float]:
    """Seconds by the clock and of processors until the line or the end, and of the round itself."""
    with tempfile.TemporaryDirectory() as place:
        line = start.line.format(out=Path(place) / "run")
        words = [word.replace("\t", " ") for word in line.split(" ")]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        clock = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        seconds = used = inside = 0.0
        for said in process.stdout:
            found = start.until.match(said.rstrip()) if start.until and not seconds else None
            if found:
                seconds = time.perf_counter() - clock
                used = processors(process.pid)[process.pid]
                inside = float(found[1])
                process.terminate()
        _, status, spent = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if start.until is None:
            seconds, used = time.perf_counter() - clock, spent.ru_utime + spent.ru_stime
        if not seconds:
            raise SystemExit(f"{line}: ended with {process.returncode} before round one did")
        return seconds, used, inside


def main() -> int:
    """Print a table."""
    parser = parser_of("How long a start takes.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ray", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    chosen = {name: s for name, s in STARTS.items() if given.ray or "Ray" not in name}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in chosen}
    for _ in range(given.repeats):
        for name, start in chosen.items():
            found[name].append(timed(start))
    unit = median(clock for clock, *_ in found["import torch"])
    late = 0
    print(
        f"{'until':22}{'seconds':>9}{'wanted':>8}{'processors':>12}{'the round':>11}{'/ torch':>9}"
    )
    for name, start in chosen.items():
        clock, used, inside = (median(column) for column in zip(*found[name], strict=True))
        wanted = "" if start.within is None else f"{start.within:g}"
        late += start.within is not None and min(clock, used) > start.within
        print(f"{name:22}{clock:9.2f}{wanted:>8}{used:12.2f}{inside:11.2f}{clock / unit:9.2f}")
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
