"""Runs on a Ray cluster whose nodes come and go, beside the same run in one process.

    python benchmarks/cluster.py [--rounds 12] [--rows nodes,unplugged,joined,disks,small] [--long]

Several machines are made of this one (`tests/machines.py`: namespaces, so root): each node has one
processor and a disk of its own, and is unplugged by killing all of it at once. With fewer
processors than nodes they share; what the rows show is what coming and going costs. Every row says
whether its bits are those of the run in one process; ratios are of the seconds of all rounds.
Rows that take minutes each (ten kills, 100 M parameters, copies in the store) come with ``--long``.
"""

from __future__ import annotations

import functools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

from at_start import HERE, load, parser_of
from rich.console import Console
from stores import watched_stores

from fedprune import federate
from fedprune.client.footprint import Footprint
from fedprune.client.host import build_host, labels_of
from fedprune.config import RunConfig, configure
from fedprune.report.screen import Screen
from fedprune.server.watch import Watch
from tests.machines import Machines, impossible, machines, unplugging

BASE: dict[str, Any] = {
    **{"task": "digits", "model": "mlp", "clients": 12, "cohort": 12, "hosts": 6, "seed": 1},
    **{"local_steps": 60},
}
KILLS = 10


@functools.cache
def timed_alone(keys: str) -> tuple[str, list[float]]:
    """What the run of these keys (JSON) comes to in this process, and the seconds of its rounds."""
    config = configure({**json.loads(keys), "engine": "inline"})
    seconds: list[float] = []
    done = federate(config, watch=Watch(row=lambda _row, took, _state: seconds.append(took)))
    return str(done.summary["weights_digest"]), seconds


@contextmanager
def gridded(made: Machines, config: RunConfig, nodes: int) -> Iterator[tuple[Any, float]]:
    """A grid on so many nodes, and the seconds until its workers were ready."""
    import ray

    from fedprune.engines.ray.engine import ray_grid
    from fedprune.engines.ray.nodes import nodes_of
    from fedprune.engines.ray.own import set_environment

    set_environment(config)
    ray.init(address=made.address, logging_level=logging.ERROR, log_to_driver=False)
    try:
        while len(nodes_of(ray.nodes())) != nodes:
            time.sleep(0.1)
        host = build_host(config)
        began = time.perf_counter()
        with ray_grid(config, host.shards, labels_of(host), Footprint()) as grid:
            yield grid, time.perf_counter() - began
    finally:
        ray.shutdown()


def played(grid: Any, config: RunConfig, after: Callable[[int], None]) -> tuple[str, list[float]]:
    """What the run comes to on a grid, and the seconds of its rounds."""
    from fedprune.engines.flower.server_app import run_on

    class Watched(Screen):
        def _row(self, row: Any, seconds: float, state: Any) -> None:
            super()._row(row, seconds, state)
            after(row["round"])

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        run_on(grid, config, folder, Watched(Console(file=StringIO())))
        lines = (folder / "timings.jsonl").read_text().splitlines()
        summary = json.loads((folder / "summary.json").read_text())
    assert summary["failures"] == 0, "a client was lost"
    return summary["weights_digest"], [json.loads(line)["seconds"] for line in lines]


def shown(name: str, start: float, found: tuple[str, list[float]], alone: Any) -> None:
    """One row of the table."""
    (digest, seconds), (right, theirs) = found, alone
    same = "the same" if digest == right else "OTHER"
    total, ratio = sum(seconds), sum(theirs) / sum(seconds)
    print(
        f"| {name} | {start:.1f} | {total:.1f} | {ratio:.2f} | {median(seconds):.2f} "
        f"| {max(seconds):.2f} | {same} |",
        flush=True,
    )


def row(
    name: str,
    keys: Mapping[str, Any],
    nodes: int,
    phases: str = "",
    after: Callable[[Machines, int], None] = lambda _made, _round: None,
    cpus: int = 1,
) -> None:
    """Play a run on so many nodes, and say what came out."""
    config = configure({**BASE, **keys, "engine": "ray"})
    alone = timed_alone(json.dumps({**BASE, **keys}))
    with machines(nodes, cpus=cpus) as made, gridded(made, config, nodes) as (grid, start):
        pulled = unplugging(grid, made, phases.split()) if phases else nullcontext()
        with pulled:
            found = played(grid, config, lambda r: after(made, r))
    shown(name, start, found, alone)


def of_nodes(rounds: int) -> None:
    """One, two and three nodes with nothing wrong."""
    for nodes in (1, 2, 3):
        row(f"nodes: {nodes}", {"rounds": rounds}, nodes)


def of_unplugged(rounds: int) -> None:
    """A node of two unplugged in a phase; another joins at once."""
    for phase in ("score", "tune", "evaluate"):
        row(f"unplugged while asked to {phase}, of 2", {"rounds": rounds}, 2, phase)
    sums = {"rounds": rounds, "secure": "secagg", "noise_source": "seeded"}
    row("unplugged in two stages of a secure sum, of 2", sums, 2, "shares unmask")


def of_joined(rounds: int) -> None:
    """A second node after a third of the rounds."""

    def after(made: Machines, round_: int) -> None:
        if round_ == rounds // 3:
            made.join()

    row("a second node joins after a third", {"rounds": rounds}, 1, after=after)


def of_small(rounds: int) -> None:
    """Eleven rounds of little work: on Ray, even with two workers, not worth its start."""
    del rounds
    keys = {"clients": 100, "cohort": 20, "hosts": 8, "rounds": 11, "split": "iid"}
    row("small rounds, 20 of 100 clients, 2 workers", {**keys, "local_steps": 10}, 1, cpus=2)


def of_disks(rounds: int) -> None:
    """What clients remember, on two nodes that share no folder of results."""
    keys = {"rounds": rounds, "uplink": "int8", "error_feedback": True}
    row("disks of their own, int8 and error feedback, 2", keys, 2)


def of_kills(rounds: int) -> None:
    """A node unplugged every sixth round, and another joins: ten times in sixty rounds."""
    del rounds

    def after(made: Machines, round_: int) -> None:
        if round_ % 6 == 3:
            made.join()
            made.unplug(min(made.nodes))

    row(f"{KILLS} kills in 60 rounds, of 2", {"rounds": 6 * KILLS}, 2, after=after)


SIZE = 10**8
"""Parameters of a large model, of which a step moves a corner (`still_task.py`)."""

LARGE: dict[str, Any] = {
    **{"task": f"still-{SIZE}", "plugin": str(HERE / "still_task.py"), "model": ""},
    **{"clients": 8, "cohort": 4, "hosts": 8, "local_steps": 1, "sparsity": 0.0},
}


def of_large(rounds: int) -> None:
    """Two rounds with a large model, four clients of eight, on two nodes."""
    del rounds
    row(f"{SIZE / 1e6:.0f} M parameters, 2 rounds, 2", {**LARGE, "rounds": 2}, 2)


def of_copies(rounds: int) -> None:
    """Measuring a large model by eight hosts on a node of two workers: copies in its store.

    Nobody trains, so that hardly anything but the question is in them.
    """
    del rounds
    untrained = {"local_steps": 0, "sparsity": 0.5, "schedule": "one-shot", "score": "magnitude"}
    config = configure({**BASE, **LARGE, **untrained, "cohort": 8, "rounds": 1, "engine": "ray"})
    with machines(1, cpus=2) as made, gridded(made, config, 1) as (grid, _):
        workers = len(grid.pool.members)
        with watched_stores(grid) as (stores, put):
            played(grid, config, lambda _round: None)
    each = ", ".join(f"{most / 1e6:.0f} MB" for most in stores.values())
    print(
        f"\nEight hosts, {workers} workers on a node: {max(put) / 1e6:.0f} MB of a question in "
        f"the driver's store; until all had answered, at most {each} in that of the node."
    )


ROWS = {
    **{"nodes": of_nodes, "unplugged": of_unplugged, "joined": of_joined, "disks": of_disks},
    "small": of_small,
}
LONG = {"kills": of_kills, "large": of_large, "copies": of_copies}


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--rows", help=f"of {', '.join(ROWS | LONG)}")
    parser.add_argument("--long", action="store_true", help="the rows that take minutes each, too")
    args = parser.parse_args()
    names = args.rows.split(",") if args.rows else [*ROWS, *(LONG if args.long else ())]
    if why := impossible():
        print(f"nothing measured: {why}")
        return
    print(f"{load()}\n")
    print("| run | start, s | rounds, s | inline / this | median round, s | longest | bits |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name in names:
        (ROWS | LONG)[name](args.rounds)


if __name__ == "__main__":
    main()
