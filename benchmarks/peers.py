"""Client updates a second against pfl-research, the fastest simulator that is published.

    python benchmarks/peers.py [--env FOLDER] [--data FOLDER] [--turns 3] [--cases NAME ...]
                               [--workers 2]

pfl is installed into an environment of its own (`--env`, by default in the folder for temporary
files), with the same torch. Both sides train the same network from the same weights on the same
clients with the same plain SGD, one thread each, in fresh processes that take turns. A round is a
whole one: who is drawn, training, the average; on our side with all that a run does (encoding,
counting bytes, checking, digests, the row of the report), on pfl's without metrics. Neither
evaluates. Seconds are of every round but the first and the last. With `--workers` our side runs on
Ray, and what counts are seconds of the clock: those of processors are the server's alone then.

The protocol of pfl's publication is 1,000 clients, 50 a round, batches of 10, one local epoch; its
data, CIFAR-10, is not to be had without the internet, and 1,797 digits do not make 1,000 clients.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from at_start import HERE, last_line, parser_of

from fedprune import federate
from fedprune.config import RunConfig, configure
from fedprune.protocol.models import dense_model
from fedprune.server.watch import Watch
from fedprune.tasks.catalog import tasks_of

PEER = "pfl==0.6.0"
WANTED, WANTED_OF_WORKERS = 1.3, 2.3
BATCH, LR = 10, 0.05


@dataclass(frozen=True)
class Case:
    """A protocol.

    Attributes:
        task: whose data.
        model: which network.
        clients: in all.
        cohort: a round.
        epochs: of local training, 0: by steps.
        steps: of local training, 0: by epochs.
        rounds: that are played.
    """

    task: str
    model: str
    clients: int
    cohort: int
    epochs: int
    steps: int
    rounds: int


CASES = {
    "published, cnn": Case("fashion-mnist", "cnn", 1000, 50, 1, 0, 10),
    "published, mlp": Case("fashion-mnist", "mlp", 1000, 50, 1, 0, 14),
    "digits an epoch, cnn": Case("digits", "cnn", 150, 50, 1, 0, 20),
    "digits an epoch, mlp": Case("digits", "mlp", 150, 50, 1, 0, 24),
    "digits 10 steps, cnn": Case("digits", "cnn", 100, 100, 5, 10, 6),
    "digits 10 steps, mlp": Case("digits", "mlp", 100, 100, 5, 10, 10),
}
"""Of 16 digits a client five epochs are ten steps: of 10 images and of 6, on both sides."""

NETWORKS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("digits", "cnn"): ("ConvNet", {"side": 8, "channels": (16, 32), "hidden": 64}),
    ("digits", "mlp"): ("Perceptron", {"side": 8, "hidden": (128, 64)}),
    ("fashion-mnist", "cnn"): ("ConvNet", {"side": 28, "channels": (8, 16), "hidden": 64}),
    ("fashion-mnist", "mlp"): ("Perceptron", {"side": 28, "hidden": (128, 64)}),
}


def config_of(case: Case, data: str, workers: int = 0) -> RunConfig:
    """Our side's configuration: dense averaging, measured in the last round alone."""
    given: dict[str, Any] = {"task": case.task, "model": case.model, "clients": case.clients}
    given |= {"cohort": case.cohort, "rounds": case.rounds, "measure_every": case.rounds}
    given |= {"split": "iid", "engine": "inline", "optimizer": "sgd", "momentum": 0.0, "clip": 0.0}
    given |= {"lr": LR, "lr_schedule": "constant", "batch_size": BATCH, "sparsity": 0.0}
    given |= {"engine": "ray", "workers": workers} if workers else {}
    given |= {"local_epochs": case.epochs} if case.epochs else {"local_steps": case.steps}
    return configure(given | ({"data": data} if case.task == "fashion-mnist" and data else {}))


def play_ours(case: Case, data: str, workers: int) -> dict[str, Any]:
    """Our side's rounds."""
    ends: list[tuple[float, float]] = []
    config = config_of(case, data, workers)

    def row(*_: Any) -> None:
        ends.append((time.perf_counter(), time.process_time()))

    result = federate(config, watch=Watch(row=row))
    task, model = tasks_of("")[config.task], result.model.train()
    shards = task.shards(config)
    whole = {n: torch.cat([s.train[n] for s in shards]) for n in shards[0].train}
    with torch.no_grad():
        loss = task.loss(model, whole)
    return {"ends": ends, "loss": float(loss.total) / loss.count}


def job_of(case: Case, data: str, folder: Path) -> Path:
    """What pfl's side needs, written down."""
    config = config_of(case, data)
    shards = tasks_of("")[config.task].shards(config)
    arrays = {f"x{i}": s.train["images"].numpy() for i, s in enumerate(shards)}
    arrays |= {f"y{i}": s.train["labels"].numpy() for i, s in enumerate(shards)}
    np.savez(folder / "arrays.npz", **arrays)
    torch.save(dense_model(config).state_dict(), folder / "weights.pt")
    name, arguments = NETWORKS[case.task, case.model]
    job = {"arrays": str(folder / "arrays.npz"), "weights": str(folder / "weights.pt")}
    job |= {"network": name, "arguments": {**arguments, "classes": 10}, "lr": LR, "batch": BATCH}
    (folder / "job.json").write_text(json.dumps({**vars(case), **job}))
    return folder / "job.json"


def environment(folder: Path) -> Path:
    """The Python of an environment with pfl in it, made where it is not there yet."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        version = torch.__version__.partition("+")[0]
        told = [str(python), "-m", "pip", "install", "-q", PEER, f"torch=={version}"]
        subprocess.run(told, check=True)
    return python


def measured(command: list[str], rounds: int) -> tuple[list[float], list[float], float]:
    """Wall and processor seconds of the rounds that count, and the loss at the end."""
    said = json.loads(last_line(command, OMP_NUM_THREADS="1"))
    gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(said["ends"])][: rounds - 2]
    return [wall for wall, _ in gaps], [busy for _, busy in gaps], said["loss"]


def main() -> None:
    """Print the table, and fail where a ratio is below what was wanted."""
    parser = parser_of(__doc__, whole=True)
    parser.add_argument("--env", type=Path, default=Path(tempfile.gettempdir()) / "fedprune-pfl")
    parser.add_argument("--data", default="", help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--workers", type=int, default=0, help="on Ray; 0: in one process")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.ours:
        print(json.dumps(play_ours(CASES[told.ours], told.data, told.workers)))
        return
    python = environment(told.env)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; {told.turns} turns")
    print("| protocol | updates/s | pfl | ratio | a processor second | pfl | ratio | loss | pfl |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    short = [name for name in told.cases if not compared(name, told, python)]
    wanted = WANTED_OF_WORKERS if told.workers else WANTED
    raise SystemExit(f"below {wanted} times pfl: {', '.join(short)}" if short else 0)


def compared(name: str, told: argparse.Namespace, python: Path) -> bool:
    """Print a case's line; whether it is as fast as was wanted."""
    case = CASES[name]
    ours = [sys.executable, str(Path(__file__)), "--ours", name, "--data", told.data]
    ours += ["--workers", str(told.workers)]
    walls: dict[str, list[float]] = {"ours": [], "pfl": []}
    busy: dict[str, list[float]] = {"ours": [], "pfl": []}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(case, told.data, Path(folder))
        theirs = [str(python), str(HERE / "peers_pfl.py"), str(job)]
        for _ in range(told.turns):
            for side, command in (("ours", ours), ("pfl", theirs)):
                wall, processor, losses[side] = measured(command, case.rounds)
                walls[side] += wall
                busy[side] += processor
    figures: list[float] = []
    for each in (walls, busy):
        rate = {side: case.cohort / median(seconds) for side, seconds in each.items()}
        figures += [rate["ours"], rate["pfl"], rate["ours"] / rate["pfl"]]
    cells = [f"{x:.2f}" if i % 3 == 2 else f"{x:.0f}" for i, x in enumerate(figures)]
    cells += [f"{losses[side]:.3f}" for side in ("ours", "pfl")]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return figures[2] >= WANTED_OF_WORKERS if told.workers else figures[5] >= WANTED


if __name__ == "__main__":
    main()
