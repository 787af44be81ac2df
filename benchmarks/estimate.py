"""The time that ``--engine auto`` says beforehand, and the time that the run then takes.

    python benchmarks/estimate.py [--rows small,digits,epochs,default]

Clocks start where the engine is chosen and stop when the run has ended. Seconds of processors are
those of all processes of the run: beside other work on the machine they are what an estimate of
the work can be held to, while the clock runs on. The last column is said / taken by the clock.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time

from at_start import ROOT, load, parser_of, processors

ENGINE = re.compile(r"\s+engine\s+(ray|inline): about ([\d.]+) (s|min)")

ROWS = {
    "small": "--task digits --model mlp --split iid --clients 100 --cohort 20 --rounds 11",
    "digits": "--task digits",
    "epochs": "--task digits --model vit --local-epochs 4 --score wanda --baselines dense",
    "default": "",
}
"""The options of each run, beside those that say where results go."""


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
        began, base = time.perf_counter(), sum(processors(run.pid).values())
        used: dict[int, float] = {}
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.5):
                used.update(processors(run.pid))

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
    parser = parser_of(__doc__)
    parser.add_argument("--rows", default=",".join(ROWS))
    args = parser.parse_args()
    print(f"{load()}\n")
    print("| run | engine | said, s | taken, s | processor s | said / taken |")
    print("|---|---|---:|---:|---:|---:|")
    for name in args.rows.split(","):
        print(row(name, ROWS[name]), flush=True)


if __name__ == "__main__":
    main()
