"""Memory of the driver and of a worker, and seconds of a phase, by clients and parameters.

    python benchmarks/sizing.py [--clients 20 200] [--parameters 100000 1000000 10000000]

A phase is a tuning by all clients, who serve from eight hosts, on a Ray of its own with two
workers: from the question to the sum. The model is that of `still_task.py`, of which a step of
training moves a corner, so that seconds are those of moving and adding up. Memory is the resident
peak of a process, all of Python and the shared memory that it touched included; each row is
measured in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from at_start import HERE, apart, load, parser_of
from still_task import SIZES

from fedprune.client.footprint import Footprint
from fedprune.client.host import build_host, labels_of
from fedprune.config import configure
from fedprune.engines.ray.engine import ray_grid
from fedprune.protocol.messages import Question
from fedprune.protocol.models import dense_model, layout_for
from fedprune.server.state import first_state
from tests.machines import workers_of

PHASES = 4


def peak(pid: int) -> float:
    """MiB that a process had resident at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measured(clients: int, parameters: int) -> dict[str, float]:
    """What phases take, in this process."""
    from fedprune.engines.flower.grid import grid_port

    task = {"task": f"still-{parameters}", "plugin": str(HERE / "still_task.py")}
    who = {"clients": clients, "cohort": clients, "hosts": 8, "rounds": PHASES}
    config = configure({**task, **who, "sparsity": 0.0, "engine": "ray", "workers": 2})
    host, began = build_host(config), time.perf_counter()
    with ray_grid(config, host.shards, labels_of(host), Footprint()) as grid:
        ready = time.perf_counter()
        model = dense_model(config)
        state, port = first_state(model, layout_for(config, model)), grid_port(grid, config)
        everyone = list(port.present())
        ends = [time.perf_counter()]
        for r in range(1, PHASES + 1):
            done = port.ask(Question("tune", r, state.weights, state.masks, lr=0.1), everyone)
            assert len(done.answered) == clients, done.failures
            del done
            ends.append(time.perf_counter())
        workers = max(map(peak, workers_of(os.getpid())))
        seconds = median(b - a for a, b in [*pairwise(ends)][1:])
        found = {"driver": peak(os.getpid()), "worker": workers}
        return {**found, "start": ready - began, "phase": seconds}


def main() -> None:
    """Print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--parameters", type=int, nargs="+", choices=SIZES, default=SIZES[:3])
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(*args.one)))
        return
    print(f"{load()}\n")
    print("| clients | parameters | driver, MiB | a worker, MiB | start, s | a phase, s |")
    print("|---:|---:|---:|---:|---:|---:|")
    for size in args.parameters:
        for clients in args.clients:
            f = json.loads(apart(__file__, "--one", clients, size))
            print(
                f"| {clients} | {size:,} | {f['driver']:,.0f} | {f['worker']:,.0f} "
                f"| {f['start']:.0f} | {f['phase']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
