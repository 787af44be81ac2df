"""Seconds per phase and server memory of our engine against plain use of Flower's simulation.

    python benchmarks/engine.py [--clients 20 100] [--parameters 1000000 10000000] [--phases 5]

A phase is from a question to the sum of every client's answers. The other side is Flower's
simulation on Ray with one message per client (`benchmarks/stock.py`), ours the grid over Ray's
actors with one per host (`fedprune/engines/ray/grid.py`), with the same resources and the same work
per client. They take turns, each time in a fresh process. The first phase
starts workers and is shown apart; seconds are the median of the others. Processor seconds are the
mean of the others, over the server's process and all of Ray's: other work on the machine disturbs
them less. Server memory is how far the phases raised what the server's process had resident, the
shared memory that it touched included.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from at_start import HERE, apart, forget_peak, parser_of, processors
from still_task import SIZES

from fedprune.client.footprint import Footprint
from fedprune.client.host import build_host, labels_of
from fedprune.config import RunConfig, configure
from fedprune.engines.ray.engine import ray_grid
from fedprune.engines.ray.own import set_environment
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.messages import Question
from fedprune.protocol.models import dense_model, layout_for
from fedprune.runtime.process import resident
from fedprune.server.state import first_state

if TYPE_CHECKING:
    from flwr.serverapp import Grid

SIDES = ("ours", "stock")
REAL = "digits"
MIB = 2**20


@dataclass(frozen=True)
class Measured:
    """What one process saw.

    Attributes:
        started: seconds from nothing to the end of the first phase.
        phases: seconds of every later phase.
        busy: processor seconds of all processes in a later phase, the mean.
        memory: bytes by which the phases raised the server's peak.
        sums: what must be the same on both sides: labels, and the sum of all values.
    """

    started: float
    phases: list[float]
    busy: float
    memory: int
    sums: tuple[float, float]


def config_of(task: str, clients: int, phases: int) -> RunConfig:
    """Everyone is asked in every phase."""
    plugin = "" if task == REAL else str(HERE / "still_task.py")
    given: dict[str, Any] = {"task": task, "plugin": plugin, "clients": clients, "split": "iid"}
    return configure({**given, "cohort": clients, "rounds": phases})


def asker(side: str, grid: Grid, config: RunConfig) -> Callable[[Question], Aggregate]:
    """How a side puts a question to every client."""
    import stock

    from fedprune.engines.flower.grid import grid_port

    layout = layout_for(config, dense_model(config))
    if side == "stock":
        return stock.asker(grid, config, layout)
    port = grid_port(grid, config)
    everyone = list(port.present())
    return lambda question: port.ask(question, everyone)


def play(side: str, grid: Grid, config: RunConfig, began: float) -> Measured:
    """Ask for a tuning, again and again, and watch."""
    model = dense_model(config)
    state = first_state(model, layout_for(config, model))
    ask = asker(side, grid, config)
    before = resident("VmRSS")
    forget_peak()
    ends = [began]
    for round_ in range(1, config.rounds + 1):
        aggregate = ask(Question("tune", round_, state.weights, state.masks, lr=config.lr))
        ends.append(time.perf_counter())
        assert aggregate.total is not None, aggregate.failures
        assert len(aggregate.answered) == config.clients, aggregate.failures
        sums = (aggregate.weight, float(aggregate.total.sum()))
        del aggregate
        if round_ == 1:
            used = sum(processors(os.getpid()).values())
    busy = (sum(processors(os.getpid()).values()) - used) / (config.rounds - 1)
    first, *later = [b - a for a, b in pairwise(ends)]
    return Measured(first, later, busy, resident("VmHWM") - before, sums)


def measure(side: str, config: RunConfig) -> Measured:
    """One side's phases, in this process."""
    began = time.perf_counter()
    if side == "ours":
        host = build_host(config)
        with ray_grid(config, host.shards, labels_of(host), Footprint()) as grid:
            return play(side, grid, config, began)
    set_environment(config)
    # Flower and Ray read the environment when they are imported.
    import stock
    from flwr.app import Context
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    server_app = ServerApp()
    seen: list[Measured] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        seen.append(play(side, grid, config, began))

    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    start = {"address": "local", "num_cpus": os.cpu_count(), "include_dashboard": False}
    start |= {"logging_level": logging.ERROR, "log_to_driver": False}
    backend = {"init_args": start, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, stock.app, config.clients, backend_config=backend)
    return seen[0]


def measure_apart(side: str, task: str, clients: int, phases: int) -> Measured:
    """`measure` in a fresh process: Ray and the server's process keep memory."""
    found = json.loads(apart(__file__, "--one", side, task, clients, phases))
    return Measured(**{**found, "sums": tuple(found["sums"])})


def compare(task: str, clients: int, phases: int, repeats: int) -> dict[str, int]:
    """Print one row; the server's memory by side."""
    runs: dict[str, list[Measured]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            runs[side].append(measure_apart(side, task, clients, phases))
    assert all(alike(r.sums, runs["ours"][0].sums) for side in SIDES for r in runs[side])
    start = {side: median(r.started for r in runs[side]) for side in SIDES}
    seconds = {side: median(s for r in runs[side] for s in r.phases) for side in SIDES}
    busy = {side: median(r.busy for r in runs[side]) for side in SIDES}
    memory = {side: round(median(r.memory for r in runs[side])) for side in SIDES}
    print(
        f"| {task} | {clients} | {seconds['ours']:.2f} | {seconds['stock']:.2f}"
        f" | {seconds['stock'] / seconds['ours']:.1f}"
        f" | {busy['ours']:.2f} | {busy['stock']:.2f} | {busy['stock'] / busy['ours']:.1f}"
        f" | {memory['ours'] / MIB:,.0f} | {memory['stock'] / MIB:,.0f}"
        f" | {start['ours']:.0f} | {start['stock']:.0f} |",
        flush=True,
    )
    return memory


def alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two sums differ by no more than their order explains."""
    return one[0] == other[0] and abs(one[1] - other[1]) <= 1e-9 * (1 + abs(one[1]))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--parameters", type=int, nargs="*", choices=SIZES, default=[10**6, 10**7])
    parser.add_argument("--phases", type=int, default=5, help="2 or more; the first is start-up")
    parser.add_argument("--repeats", type=int, default=1, help="fresh processes for each side")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        side, task, clients, phases = args.one
        found = measure(side, config_of(task, int(clients), int(phases)))
        print(json.dumps(asdict(found)))
        return
    print(f"{os.cpu_count()} processors, {args.phases} phases, {args.repeats} times each\n")
    print(
        "| task | clients | s per phase | stock | ratio | processor s | stock | ratio"
        " | server MiB | stock | start-up s | stock |\n|" + " ---: |" * 12
    )
    grown = []
    for task in [*(f"still-{size}" for size in args.parameters), REAL]:
        memory = {n: compare(task, n, args.phases, args.repeats)["ours"] for n in args.clients}
        few, many = min(args.clients), max(args.clients)
        grown.append(f"{task} {memory[many] / memory[few]:.2f}")
    print(f"\nOur server memory at {many} clients to that at {few}: {', '.join(grown)}.")


if __name__ == "__main__":
    main()
