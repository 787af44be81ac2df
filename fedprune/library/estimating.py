"""What a run will take, before it runs: it is rehearsed with one client for many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from fedprune.client.footprint import Footprint, footprint_of
from fedprune.client.host import Host, build_host
from fedprune.config import RunConfig, with_values
from fedprune.config.options import CENTRAL, LOCAL, OWN_START
from fedprune.engines.choosing import (
    REPORT_COST,
    chosen_engine,
    on_ray,
    one_by_one,
    rounds_of,
    seconds_told,
    workers_for,
)
from fedprune.engines.sampled import Meter, sampled_port
from fedprune.library.federating import configured_by
from fedprune.library.keywords import told_in_keywords
from fedprune.options.refusal import ConfigError
from fedprune.records.arms import PRUNED
from fedprune.records.sizes import Summary
from fedprune.report.closing import in_bytes
from fedprune.run import NoRoundCompleted, run_federated
from fedprune.runtime.process import put_back, resident
from fedprune.server.rows import Row
from fedprune.server.state import State
from fedprune.server.watch import Watch
from fedprune.tasks.catalog import known_as_own
from fedprune.tasks.task import Task

REHEARSAL = 60.0  # Seconds of rehearsing; rounds that are left then are taken to be as the last one
REPORT_MEMORY = 90e6  # Bytes that the page's pictures take at the end, as measured
KEEP_COST = 0.006  # Seconds that rows and a checkpoint of a round take on a disk, as measured

TRAFFIC = ("bytes_up", "bytes_down", "bytes_evaluation", "bytes_dense")


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    config: RunConfig
    parameters: int  # of the dense model
    prunable: int  # how many of them can be pruned
    # bytes by the columns of a row: ``bytes_up`` and ``bytes_down`` of scoring and training,
    # ``bytes_evaluation``, ``bytes_dense`` of dense FedAvg
    traffic: dict[str, int]
    sparsity: float  # at the end
    # floating-point operations of all clients, multiplications and additions; not those of the arms
    # local and centralised
    flops: float
    seconds: float  # by the engine that is chosen, on this machine with nothing beside it
    engine: str  # inline or ray
    memory: float  # bytes resident at the peak of this process
    workers: int  # how many workers Ray starts; 0: none
    worker_memory: float  # bytes of each
    rehearsed: int  # rounds that were rehearsed, of all arms
    rounds: int  # rounds of all arms


class _Enough(Exception):
    """The rehearsal took long enough."""


@told_in_keywords()
def estimate(what: RunConfig | Task | None = None, **options: Any) -> Estimate:
    """What a run will take of bytes, operations, memory and time, without running it.

    The run is rehearsed on its own model and data: of those who are asked one client answers, with
    one step of training, and counts for all; of secure sums everyone takes part. So bytes are what
    the codecs make of real answers, of any method. Nothing is written, nothing is learned.

    Args:
        what: a configuration; or a task, or nothing, with options beside it, as for `federate`.
        options: of `fedprune.RunConfig`, where `what` is no configuration.

    Raises:
        ConfigError: as `fedprune.federate`; or clients fail in the rehearsal.

    What data decides (an adaptive schedule, clients that prune once they are accurate) is not known
    after a step of training: such a run is estimated as one that prunes as late as it may.
    """
    with known_as_own(what) if isinstance(what, Task) else nullcontext():
        return estimate_of(build_host(configured_by(what, options)))


def estimate_of(host: Host) -> Estimate:
    """The same for a host that is built already."""
    takes, meter = footprint_of(host), Meter()
    engine: str = host.config.engine
    if engine == "auto":
        engine = chosen_engine(host.config, host.shards, takes).engine
    apart = {LOCAL, CENTRAL}
    others = tuple(arm for arm in host.config.baselines if arm not in apart)
    config = with_values(host.config, {"engine": "inline", "baselines": others})
    rows, summary, spent = _rehearsed(replace(host, config=config), takes, meter)
    rounds = rounds_of(config)
    shared = {arm for arm in others if arm not in OWN_START}
    played = len(rows) - sum(r["arm"] in shared and r["round"] <= config.warmup for r in rows)
    share = rounds / max(1, played)
    server = max(spent - meter.spent, 0.0)
    workers = workers_for(host.config, takes) if engine == "ray" else 0
    work = share * meter.seconds
    seconds = on_ray(work, round(share * meter.phases), workers) if workers else work
    seconds += share * server + rounds * KEEP_COST + REPORT_COST
    seconds += one_by_one(host.config, host.shards, takes)
    mine = [row for row in rows if row["arm"] == PRUNED]
    end = summary or _continued(mine, config)
    return Estimate(
        host.config,
        host.layout.parameters,
        host.layout.whole,
        {key: end[key] for key in TRAFFIC},
        end["sparsity"],
        share * meter.flops,
        seconds,
        engine,
        resident("VmHWM") + REPORT_MEMORY,
        workers,
        takes.memory,
        played,
        rounds,
    )


def _rehearsed(
    host: Host, takes: Footprint, meter: Meter
) -> tuple[list[Row], Summary | None, float]:
    """The rows of the rehearsal, its summary if it came to the end, and its seconds."""
    rows: list[Row] = []
    until, began = time.monotonic() + REHEARSAL, time.process_time()

    def row(told: Row, _: float, state: State) -> None:
        del state
        rows.append(told)
        if time.monotonic() > until:
            raise _Enough

    summary = None
    with put_back(), suppress(_Enough):
        port = sampled_port(host, takes, meter)
        try:
            summary = run_federated(host.config, port, watch=Watch(row=row), callbacks=()).summary
        except NoRoundCompleted as error:
            raise ConfigError(str(error)) from None
    return rows, summary, time.process_time() - began


def _continued(rows: Sequence[Row], config: RunConfig) -> Summary:
    """What there will be at the end, if each round that was not rehearsed is as the last."""
    if not rows:
        return dict.fromkeys(TRAFFIC, 0) | {"sparsity": 0.0}
    last, before = rows[-1], rows[-2] if len(rows) > 1 else dict.fromkeys(TRAFFIC, 0)
    left = config.rounds - last["round"]
    sums = {key: last[key] + left * (last[key] - before[key]) for key in TRAFFIC}
    return sums | {"sparsity": float(config.sparsity or 0.0)}


def estimate_lines(found: Estimate) -> list[str]:
    """What is said of an estimate."""
    t = found.traffic
    sent = t["bytes_up"] + t["bytes_down"]
    part = f" ({sent / t['bytes_dense']:.0%} of dense FedAvg)" if t["bytes_dense"] else ""
    where = "this process"
    memory = f"{in_bytes(found.memory)} at most"
    if found.workers:
        where = f"{found.workers} workers on Ray"
        memory += f", and {in_bytes(found.worker_memory)} in each of {found.workers} workers"
    lines = [
        f"  parameters  {found.parameters:,}, {found.prunable:,} prunable "
        f"({found.prunable / found.parameters:.1%}); sparsity {found.sparsity:.4g} at the end",
        f"  sent        {in_bytes(t['bytes_up'])} up, {in_bytes(t['bytes_down'])} down{part}; "
        f"{in_bytes(t['bytes_evaluation'])} more to measure",
        f"  operations  {found.flops:.3g} of all clients",
        f"  memory      {memory}",
        f"  time        about {seconds_told(found.seconds)} in {where}",
    ]
    if found.rehearsed < found.rounds:
        lines.append(
            f"  rehearsed   {found.rehearsed} of {found.rounds} rounds; the others are taken to be "
            "as these"
        )
    return lines
