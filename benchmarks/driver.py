"""The driver alone, with answers that are made up: what a round costs it by partitions and hosts.

    python benchmarks/driver.py

First its pieces: adding up the sums of hosts, grouping partitions and encoding a question for each.
Then whole runs in which everybody is asked: all that a run does, but for asking.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from at_start import load, parser_of

from fedprune import federate
from fedprune.config import configure
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.forms import form_of
from fedprune.protocol.messages import Question
from fedprune.protocol.models import layout_at
from fedprune.protocol.port import Port
from fedprune.protocol.running_sum import RunningSum
from fedprune.server.watch import Watch

BASE: dict[str, Any] = {"task": "digits", "model": "mlp", "seed": 1, "local_steps": 1}


def main() -> None:
    """Print the tables."""
    parser_of(__doc__).parse_args()
    print(f"{load()}\n")
    parameters = 100_000
    print(f"| partitions | hosts | {parameters:,} values: fold, s | ms a host | lists, s |")
    print("|---:|---:|---:|---:|---:|")
    for partitions, hosts in ((1_000, 8), (10_000, 64), (100_000, 64), (100_000, 1_000)):
        fold, lists = folded(partitions, hosts, parameters), listed(partitions, hosts)
        print(
            f"| {partitions:,} | {hosts:,} | {fold:.2f} | {1e3 * fold / hosts:.2f} | {lists:.2f} |",
            flush=True,
        )
    print("\n| partitions, all asked | a round, s | the run, s | bytes of a row | peak, MiB |")
    print("|---:|---:|---:|---:|---:|")
    for partitions in (1_000, 10_000, 100_000, 1_000_000):
        each, whole, size = made_up(partitions)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {partitions:,} | {each:.2f} | {whole:.1f} | {size:,} | {most:,.0f} |", flush=True)


def folded(partitions: int, hosts: int, parameters: int) -> float:
    """Seconds to add up the sums of so many hosts."""
    each = partitions // hosts
    total = torch.ones(parameters, dtype=torch.float64)
    began, out = time.perf_counter(), RunningSum()
    for h in range(hosts):
        who = tuple(range(h * each, (h + 1) * each))
        out.add(Aggregate(total=total, weight=1.0, answered=who))
    done = out.whole()
    assert len(done.answered) == each * hosts
    return time.perf_counter() - began


def made_up(partitions: int) -> tuple[float, float, int]:
    """A run whose clients' answers are made up: a round, all of it, and bytes of its last row.

    All that a run does but asking: drawing, booking, the ledger, rows, checkpoints, the report.
    """
    many = {"clients": partitions, "cohort": partitions, "hosts": min(partitions, 1_000)}
    keys = {**BASE, **many, "rounds": 4, "warmup": 1, "end": 3, "split": "iid"}
    config = configure({**keys, "engine": "inline"})

    def ask(question: Question, asked: Sequence[int]) -> Aggregate:
        n, form = len(asked), form_of(question, config, layout_at(config, question.edits))
        total = torch.full((form.values,), 1e-3 * n, dtype=torch.float64) if form.values else None
        votes = torch.full((form.voters,), n // 2) if form.voters else None
        return Aggregate(total, float(n), dict.fromkeys(form.totals, float(n)), votes, tuple(asked))

    seconds: list[float] = []
    watch = Watch(row=lambda _row, took, _state: seconds.append(took))
    labels = dict.fromkeys(range(partitions), 10)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        federate(config, Port(ask, lambda: labels, rehearsed=True), folder=folder, watch=watch)
        size = len((folder / "rounds.jsonl").read_bytes().splitlines()[-1])
    return median(seconds), time.perf_counter() - began, size


def listed(partitions: int, hosts: int) -> float:
    """Seconds to group partitions by host and encode a question with each one's own bytes."""
    from fedprune.client.host import grouped
    from fedprune.protocol.broadcast import broadcast

    given = {**BASE, "clients": partitions, "cohort": partitions, "hosts": hosts}
    config = configure({**BASE, "rounds": 2}).model_copy(update=given)
    began = time.perf_counter()
    groups = grouped(range(partitions), config)
    sent = broadcast(Question("evaluate", 1, {}, {}, part="validation"), "fp32")
    for group in groups.values():
        sent.packet(group)
    sent.size(range(partitions))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
