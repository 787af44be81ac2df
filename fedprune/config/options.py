"""Options of the federation, the engine and the results."""

from __future__ import annotations

from typing import Any, Literal

from fedprune.options.conditions import Not
from fedprune.options.name_table import NameTable
from fedprune.options.option import BY_TASK, Count, option
from fedprune.options.section import Section

BASELINES = {
    "dense": "the same rounds and seed without pruning",
    "random": "the same rounds, seed and schedule with a random mask",
    "magnitude": "the same rounds, seed and schedule, by the size of the weights",
    "lottery": "by their size, what stays going back to the end of the warm-up after each pruning",
    "local-only": "each client prunes and tunes alone, all rounds; means over their models",
    "centralised": "one client with all data and as many examples a round, in this process",
    "dense-small": "a dense model of the pruned size, of units drawn at random, all rounds",
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


def _fewest_answers(c: Any) -> int:
    from fedprune.learning.robust_rules import fewest_answers

    return fewest_answers(c.robust, c.byzantine, c.cohort)


class Federation(Section):
    """Who is asked in a round."""

    rounds: Count = option("federation", "rounds in all", BY_TASK)
    cohort: Count = option(
        "federation",
        "partitions asked a round, drawn without replacement",
        BY_TASK,
        derived=lambda c: min(c.usual("cohort"), c.clients),
    )
    selector: str = option(
        "federation",
        "who of those present is in a round's cohort",
        "uniform",
        names=NameTable("fedprune.config.selectors", "SELECTORS", "selectors_of"),
    )
    min_clients: Count = option(
        "federation",
        "answers without which a round is void (default 1, or what --robust needs)",
        derived=_fewest_answers,
    )
    hosts: Count = option(
        "federation",
        "groups that fold their clients' sums (default min(clients, 8); with --batched fewer, so "
        "that a cohort has so many clients in each)",
        derived=lambda c: min(c.clients, 8, max(1, c.cohort // c.batched) if c.batched > 1 else 8),
    )
    measure_every: Count = option(
        "federation", "rounds from one measuring on validation to the next; the last is one", 1
    )
    measure_cohort: int = option(
        "federation",
        "partitions that measure then, drawn anew by the seed (0: everyone); tests ask everyone",
        0,
        ge=0,
    )
    client_percentiles: bool = option(
        "federation",
        "say how quality on test is spread over clients, from a histogram that they add up",
        False,
    )
    newcomers: int = option(
        "federation",
        "clients, drawn by the seed, that never train: quality on them is said by itself",
        0,
        ge=0,
    )
    strikes: int | None = option(
        "federation",
        "rounds in a row that a client may fail in before it is left out for as many (default: "
        "it is always asked)",
        None,
        ge=1,
    )

    budget: Literal["none", "memory", "flops", "bytes"] = option(
        "federation",
        "what of a simulated device decides which part of the model, or rank, a client has, of "
        "those that the method or --ranks name (none: by its number); else flops: how many steps",
        "none",
        when={"profiles": Not("")},
    )
    over_select: float = option(
        "federation",
        "clients asked in a round, in cohorts: of more than one the first cohort of answers counts "
        "(with --profiles by the simulated clock)",
        1.0,
        when=({"engine": "flower"}, {"profiles": Not("")}),
        ge=1,
        le=10,
    )
    profiles: str = option(
        "federation",
        "TOML file of classes of devices (share, flops, up, down, memory, availability, dropout, "
        "watts): clients are simulated as such, with a clock of their own (docs/profiles.md)",
        "",
    )


class Engine(Section):
    """Who serves the clients."""

    engine: Literal["auto", "ray", "inline", "flower"] = option(
        "engine",
        "ray: workers on Ray; inline: this process, no Ray; auto: what is done sooner by an "
        "estimate, with the same bits; flower: set by `flwr run`",
        "auto",
    )
    workers: int = option("engine", "client processes (0: as many as fit)", 0, ge=0)
    gpus: float = option(
        "engine",
        "GPUs a worker gets (-1: as many workers share one as fit, if there)",
        -1.0,
        ge=-1,
        le=1,
    )
    ray_address: str = option(
        "engine", "address of a running Ray cluster", "", when={"engine": ("auto", "ray")}
    )
    stream: Literal["auto", "on", "off"] = option(
        "engine",
        "read a pretrained model that nobody trains block by block, so that a process holds one "
        "block at a time (auto: from 67 million weights, or where memory is short)",
        "auto",
    )
    batched: Count = option(
        "engine",
        "clients of a host that are trained and scored as one computation: the same summands to "
        "1e-5 or so, not the same bits; pays for small models and batches (docs/learning.md)",
        1,
    )
    timeout: float = option(
        "engine",
        "seconds a phase may take (a client: half of what is left to its host)",
        3600.0,
        gt=0,
    )
    deadline: float | Literal["auto"] | None = option(
        "engine",
        "seconds that devices have for a question, up to --timeout; auto: three times the median "
        "of what others took, a minute at least (default: --timeout); with --profiles by the "
        "simulated clock, a number",
        None,
        when=({"engine": "flower"}, {"profiles": Not("")}),
    )


class Results(Section):
    """What is kept."""

    baselines: tuple[Baseline, ...] = option(
        "results",
        "arms to run beside, of the same rounds and seed (after --init: of what is left); with "
        "local-only and centralised, how much of the gap between them is closed",
        (),
        names=BASELINES,
        strict=False,
    )
    save: Literal["last", "best"] = option(
        "results",
        "whose model is the result: of the last round; or of the one with the lowest loss on "
        "validation, among those with the most weights removed that everyone measured who was to",
        "last",
    )
    patience: int = option(
        "results",
        "end an arm when so many measurements in a row, after all is pruned, brought no lower loss "
        "on validation (0: never)",
        0,
        ge=0,
    )
    track: tuple[Literal["wandb", "mlflow", "csv"], ...] = option(
        "results",
        "where else the rows are logged as they come, through libraries of their own "
        "(docs/running.md)",
        (),
        names=TRACKERS,
    )
    out: str = option("results", "folder of the results (default runs/<task>-<time>)", "")
    verbose: bool = option("results", "show Flower's and Ray's own logs", False)
