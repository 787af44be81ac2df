"""What a run takes with 10,000 clients, over what it takes with 100: memory, and time per round.

    python benchmarks/scale.py [--clients 100 10000] [--engines inline ray] [--turns 1]

Whole runs of `fedprune run` in fresh processes that take turns: a perceptron of 100,000 parameters,
50 clients a round, 20 rounds with scores and pruning, measured on 50 clients a round, and by
everyone when pruning begins and at the end. Each client has 20 images, which the task takes out of
a pool when they are needed (`fedprune.tasks.later`): how much data there is does not count here.
Memory is the peak of the process that is the server (`VmHWM`), with what it measures at the end. A
round's seconds are the median of all rounds but the first, in which workers begin, and the last.
It fails where either is more than `--most` times as much.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch
from rich.console import Console

from fedprune import federate
from fedprune.client.footprint import footprint_of
from fedprune.client.host import build_host, labels_of
from fedprune.client.memory import in_run
from fedprune.config import RunConfig, configure
from fedprune.engines.inline import inline_port
from fedprune.records.bound import Going
from fedprune.runtime.process import resident
from fedprune.tasks.later import Later
from fedprune.tasks.losses import classification_loss
from fedprune.tasks.networks import Perceptron
from fedprune.tasks.task import Part, Shard, Task

SIDE, CLASSES, POOL = 8, 10, 5000
ROUNDS, COHORT = 20, 50


@functools.cache
def pool() -> Part:
    """Images that are brighter the greater their class is: what a file would hold."""
    gen = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (POOL,), generator=gen)
    images = torch.rand(POOL, 1, SIDE, SIDE, generator=gen) + labels.view(-1, 1, 1, 1) / CLASSES
    return {"images": images, "labels": labels}


def shard(partition: int) -> Shard:
    """Twenty images that lie one behind the other: copies, as if they were read."""
    first = 7 * partition % (POOL - 20)
    ends = [first + n for n in (0, 16, 18, 20)]
    return Shard(*({n: t[a:b].clone() for n, t in pool().items()} for a, b in pairwise(ends)))


def shards(config: Any) -> Later:
    """Everybody's, each when it is needed."""
    return Later(config.clients, shard)


TASKS = {
    "scale": Task(
        summary="brightness, with 100,000 parameters",
        metric="accuracy",
        unit="examples",
        model=lambda _config: Perceptron(SIDE, (280, 280), CLASSES),
        loss=classification_loss,
        shards=shards,
        output=("head",),
        classes=lambda _config: CLASSES,
        defaults={"optimizer": "sgd", "lr": 0.05, "batch_size": 8, "local_epochs": 1},
    )
}
"""As a plug-in: `--plugin benchmarks/scale.py --task scale`."""


def play(engine: str, clients: int, folder: Path) -> dict[str, float]:
    """One run in this process: its peak in bytes, and the seconds of a round, by both clocks."""
    from fedprune.report.screen import Screen

    began, ends = time.perf_counter(), []

    class Watched(Screen):
        def _row(self, row: Any, seconds: float, state: Any) -> None:
            super()._row(row, seconds, state)
            ends.append((time.perf_counter(), time.process_time()))

    given = {"plugin": __file__, "task": "scale", "split": "iid", "seed": 1, "hosts": 8}
    given |= {"clients": clients, "cohort": COHORT, "measure_cohort": COHORT}
    given |= {"rounds": ROUNDS, "warmup": 4, "engine": engine}
    given |= {"workers": 2} if engine == "ray" else {}
    with open(os.devnull, "w") as nowhere:
        whole_run(configure(given), folder, Watched(Console(file=nowhere)))
    gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)][:-1]
    wall, busy = (median(column) for column in zip(*gaps, strict=True))
    peak = resident("VmHWM")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    whole = time.perf_counter() - began
    return {"wall": wall, "busy": busy, "peak": peak, "whole": whole, "folder": size}


def whole_run(config: RunConfig, folder: Path, screen: Any) -> None:
    """What the command line does with a configuration."""
    host = build_host(config)
    if config.engine == "inline":
        port = inline_port(host, screen.tick, in_run(folder))
        federate(config, port, folder=folder, watch=screen.watch())
        return
    from fedprune.engines.ray.engine import simulate

    about = (host.shards, labels_of(host), footprint_of(host))
    simulate(config, folder, screen, Going(resume=False, anyway=False), *about)


def measured(engine: str, clients: int) -> dict[str, float]:
    """The same in a fresh process."""
    from at_start import apart  # not of who takes this file as a plug-in

    with tempfile.TemporaryDirectory() as place:
        words = ("--one", engine, "--clients", clients, "--folder", Path(place) / "run")
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        found: dict[str, float] = json.loads(apart(__file__, *words, **env))
    return found


def main() -> None:
    """Print the table; fail where what grows grows by more than was wanted."""
    from at_start import parser_of

    parser = parser_of(__doc__, whole=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--engines", nargs="+", default=["inline", "ray"])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--most", type=float, default=1.2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        print(json.dumps(play(told.one, told.clients[0], told.folder)))
        return
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    heads = "s a round | ratio | server's processor s | ratio | server's MiB | ratio"
    print(f"| engine | clients | {heads} | whole run, s | folder, MiB |")
    print("| --- " + "| ---: " * 9 + "|")
    worst = max(compared(engine, told.clients, told.turns) for engine in told.engines)
    raise SystemExit(f"{worst:.2f} times, wanted {told.most:g}" if worst > told.most else 0)


def compared(engine: str, clients: list[int], turns: int) -> float:
    """Print the rows of an engine; the greatest ratio to its first one.

    Of the two clocks the one that makes less of it: wall seconds grow with other work on the
    machine, and seconds of the server's own process are few on Ray.
    """
    found: dict[int, list[dict[str, float]]] = {n: [] for n in clients}
    for _ in range(turns):
        for n in clients:
            found[n].append(measured(engine, n))
    figures = {n: {k: median(one[k] for one in runs) for k in runs[0]} for n, runs in found.items()}
    first, worst = figures[clients[0]], 0.0
    for n, f in figures.items():
        ratio = {key: f[key] / first[key] for key in f}
        worst = max(worst, min(ratio["wall"], ratio["busy"]), ratio["peak"])
        print(
            f"| {engine} | {n:,} | {f['wall']:.2f} | {ratio['wall']:.2f} | {f['busy']:.2f} "
            f"| {ratio['busy']:.2f} | {f['peak'] / 2**20:,.0f} | {ratio['peak']:.2f} "
            f"| {f['whole']:.0f} | {f['folder'] / 2**20:.1f} |",
            flush=True,
        )
    return worst


if __name__ == "__main__":
    main()
