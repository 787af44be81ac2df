"""The time that ``--engine auto`` says beforehand, and the time that the run then takes.

    python benchmarks/estimate.py [--rows small,digits,epochs,default]

Clocks start where the engine is chosen and stop when the run has ended. Seconds of processors are
those of all processes of the run: beside other work on the machine they are what an estimate of
the work can be held to, while the clock runs on. The last column is said / taken by the clock.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE = re.compile(r"\s+engine\s+(ray|inline): about ([\d.]+) (s|min)")

ROWS = {
    "small": "--task digits --model mlp --split iid --clients 100 --cohort 20 --rounds 11",
    "digits": "--task digits",
    "epochs": "--task digits --model vit --local-epochs 4 --score wanda --baselines dense",
    "default": "",
}
"""The options of each run, beside those that say where results go."""


def seconds_of(root: int, before: dict[int, float]) -> dict[int, float]:
    """Seconds of processors by process id, of a process and its descendants (proc(5), stat)."""
    parents, used = {}, {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        pid = int(path.name)
        parents[pid] = int(fields[1])
        used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ours(pid: int) -> bool:
        while pid > 1 and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    return {**before, **{pid: s for pid, s in used.items() if ours(pid)}}


def row(name: str, options: str) -> str:
    """One row of the table: a run as a user types it."""
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "simulations/run.py", *options.split(), "--out", f"{place}/run"]
        run = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert run.stdout is not None
        chosen = next(found for line in run.stdout if (found := ENGINE.match(line)))
        began, base = time.perf_counter(), sum(seconds_of(run.pid, {}).values())
        used: dict[int, float] = {}
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.5):
                used.update(seconds_of(run.pid, used))

        watcher = threading.Thread(target=look)
        watcher.start()
        for _ in run.stdout:
            pass
        code, took = run.wait(), time.perf_counter() - began
        over.set()
        watcher.join()
        assert code == 0, f"{words}: exit code {code}"
    said = float(chosen[2]) * (60 if chosen[3] == "min" else 1)
    work = sum(used.values()) - base
    return f"| {name} | {chosen[1]} | {said:.0f} | {took:.0f} | {work:.0f} | {said / took:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS))
    args = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n")
    print("| run | engine | said, s | taken, s | processor s | said / taken |")
    print("|---|---|---:|---:|---:|---:|")
    for name in args.rows.split(","):
        print(row(name, ROWS[name]), flush=True)


if __name__ == "__main__":
    main()
