"""Options of the federation, the engine and the results."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from fedprune.options.conditions import Not
from fedprune.options.name_table import NameTable
from fedprune.options.option import BY_TASK, Count, option
from fedprune.options.section import Section

BASELINES = {
    "dense": "the same rounds and seed without pruning",
    "random": "the same rounds, seed and schedule with a random mask",
    "magnitude": "the same rounds, seed and schedule, pruned by magnitude",
    "lottery": "by magnitude; kept weights are set back to the end of the warm-up at each pruning",
    "local-only": "each client prunes and trains alone for all rounds; means over their models",
    "centralised": "one client with all data and as many examples a round, in this process",
    "dense-small": "a dense model of the pruned size, of units drawn at random, for all rounds",
}

Baseline = Literal[
    "dense", "random", "magnitude", "lottery", "local-only", "centralised", "dense-small"
]

TRACKERS = {
    "wandb": "Weights & Biases, in FOLDER/wandb; WANDB_MODE=offline sends nothing",
    "mlflow": "MLflow, at MLFLOW_TRACKING_URI or else in FOLDER/mlruns",
    "csv": "FOLDER/rounds.csv, a line a round",
}

LOCAL, CENTRAL, SMALL = "local-only", "centralised", "dense-small"

OWN_START = (LOCAL, CENTRAL, SMALL)
"""Baselines that do not begin with the warm-up of the run: they differ from it in round one."""

_federation, _engine = partial(option, "federation"), partial(option, "engine")
_results = partial(option, "results")


def _fewest_answers(c: Any) -> int:
    from fedprune.learning.robust_rules import fewest_answers

    return fewest_answers(c.robust, c.byzantine, c.cohort)


class Federation(Section):
    """Who is asked in a round."""

    rounds: Count = _federation("rounds in all", BY_TASK)
    cohort: Count = _federation(
        "clients asked in a round, drawn without replacement",
        BY_TASK,
        derived=lambda c: min(c.usual("cohort"), c.clients),
    )
    selector: str = _federation(
        "how a round's cohort is drawn from the clients that are present",
        "uniform",
        names=NameTable("fedprune.config.selectors", "SELECTORS", "selectors_of"),
    )
    min_clients: Count = _federation(
        "fewest answers that a round needs to count (default 1, or what --robust needs)",
        derived=_fewest_answers,
    )
    hosts: Count = _federation(
        "groups of clients whose sums are added up where they run (default min(clients, 8); "
        "with --batched fewer, so that a host has --batched clients of a cohort)",
        derived=lambda c: min(c.clients, 8, max(1, c.cohort // c.batched) if c.batched > 1 else 8),
    )
    measure_every: Count = _federation(
        "rounds between two measurements on validation; the last round is always measured", 1
    )
    measure_cohort: int = _federation(
        "clients that measure on validation, drawn anew each time (0: all); on test all measure",
        0,
        ge=0,
    )
    client_percentiles: bool = _federation(
        "report percentiles of test quality over clients, from a histogram that they add up", False
    )
    newcomers: int = _federation(
        "number of clients, drawn by the seed, that never train; their quality is reported "
        "separately",
        0,
        ge=0,
    )
    strikes: int | None = _federation(
        "after failing in this many rounds in a row, a client is left out for as many (default: "
        "it is always asked)",
        None,
        ge=1,
    )

    budget: Literal["none", "memory", "flops", "bytes"] = _federation(
        "which limit of a simulated device decides how much of the model it gets, or which of "
        "--ranks; with flops and the whole model, how many local steps; none: its number "
        "decides",
        "none",
        when={"profiles": Not("")},
    )
    over_select: float = _federation(
        "ask this many times --cohort, and use the first --cohort answers (with --profiles by "
        "the simulated clock)",
        1.0,
        when=({"engine": "flower"}, {"profiles": Not("")}),
        ge=1,
        le=10,
    )
    profiles: str = _federation(
        "TOML file of device classes (share, flops, up, down, memory, availability, dropout, "
        "watts) that clients are simulated as, with a simulated clock (docs/profiles.md)",
        "",
    )


class Engine(Section):
    """Who serves the clients."""

    engine: Literal["auto", "ray", "inline", "flower"] = _engine(
        "ray: workers on Ray; inline: this process, without Ray; auto: the faster of the two by "
        "an estimate, with the same bits; flower: set by `flwr run`",
        "auto",
    )
    workers: int = _engine("client processes (0: as many as fit)", 0, ge=0)
    gpus: float = _engine(
        "GPUs per worker (-1: workers share a GPU, as many as fit, where there is one)",
        -1.0,
        ge=-1,
        le=1,
    )
    ray_address: str = _engine(
        "address of a running Ray cluster", "", when={"engine": ("auto", "ray")}
    )
    stream: Literal["auto", "on", "off"] = _engine(
        "read a pretrained model that is not trained block by block, so that a process holds "
        "one block at a time (auto: from 67 million weights, or where memory is short)",
        "auto",
    )
    batched: Count = _engine(
        "clients of a host that are trained and scored as one computation: sums equal to about "
        "1e-5, not to the bit; faster for small models and batches (docs/learning.md)",
        1,
    )
    timeout: float = _engine(
        "seconds that a phase may take (a client: half of what is left to its host)", 3600.0, gt=0
    )
    deadline: float | Literal["auto"] | None = _engine(
        "seconds that devices have to answer, up to --timeout; auto: three times the median of "
        "the others, at least a minute (default: --timeout); with --profiles a number, by the "
        "simulated clock",
        None,
        when=({"engine": "flower"}, {"profiles": Not("")}),
    )


class Results(Section):
    """What is kept."""

    baselines: tuple[Baseline, ...] = _results(
        "other arms to run, with the same rounds and seed (after --init: of what is left); "
        "local-only and centralised together give how much of the gap between them is closed",
        (),
        names=BASELINES,
        strict=False,
    )
    save: Literal["last", "best"] = _results(
        "last: the result is the last round's model; best: that of the round with the lowest "
        "validation loss, among those with the most weights removed and every measurement "
        "present",
        "last",
    )
    patience: int = _results(
        "stop an arm after this many measurements without a lower validation loss, once all is "
        "pruned (0: never)",
        0,
        ge=0,
    )
    track: tuple[Literal["wandb", "mlflow", "csv"], ...] = _results(
        "also log each round to these libraries (docs/running.md)", (), names=TRACKERS
    )
    out: str = _results("folder of the results (default runs/<task>-<time>)", "")
    verbose: bool = _results("show Flower's and Ray's own logs", False)
