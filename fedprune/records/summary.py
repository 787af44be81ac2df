"""The summary of a run: ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from fedprune.adapters.options import Adapting
from fedprune.config import RunConfig
from fedprune.config.measured_noise import rank_spread
from fedprune.config.options import CENTRAL, LOCAL
from fedprune.methods.catalog import client_parts, method_of
from fedprune.methods.measuring import own_masks, own_sparsity
from fedprune.protocol.client_privacy import hides
from fedprune.records.sizes import Summary, sizes_of_model
from fedprune.server.plan import Plan
from fedprune.server.rows import Row, quality
from fedprune.server.state import State, Totals
from fedprune.server.work import bytes_needed
from fedprune.structure.layout import Layout
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.client_spread import client_percentiles, figure_name
from fedprune.tasks.coverage import reading_of
from fedprune.tasks.resampling import intervals
from fedprune.tasks.task import class_names_of

OWN_DATA = "devices' own"  # What a summary says of the split where there was none


@dataclass(frozen=True)
class About:
    """What a summary says beside the states."""

    model: str  # the model's class
    sizes: Mapping[int, int]  # labels in each partition's training part
    seconds: float  # how long it took
    # what label frequencies alone reach on test, by measure
    naive: Mapping[str, float] = field(default_factory=dict)
    # the plan of the last state, with the layout that its model has come to
    plan: Plan | None = None
    # whether clients were devices with data of their own: then nothing was split
    own_data: bool = False


def summary_of(
    config: RunConfig, layout: Layout, end: State, tests: Mapping[str, Totals], about: About
) -> Summary:
    """What a run came to.

    `tests`: test totals over all partitions, by arm, the pruned one first.
    """
    task = tasks_of(config.plugin)[config.task]
    return {
        "task": config.task,
        "model": about.model,
        "family": config.model,
        "metric": task.metric,
        "unit": task.unit,
        "class_names": list(class_names_of(task, config)),
        "seed": config.seed,
        "split": OWN_DATA if about.own_data else config.split,
        "clients": len(about.sizes),
        "cohort": config.cohort,
        "hosts": len(about.sizes) if about.own_data else config.hosts,
        "engine": config.engine,
        "population": population_of(config),
        "reading": {} if hides(config) else reading_of(config),
        "shard_sizes": [] if hides(config) else [about.sizes[p] for p in sorted(about.sizes)],
        **sizes_of_model(config, layout, end, about.plan),
        **_own(end, about),
        "quality": _quality(config, end, tests),
        **_intervals(end, tests),
        **_spread_over_clients(config, end, tests),
        "naive": dict(about.naive),
        "bytes_up": end.book.traffic.up,
        "bytes_down": end.book.traffic.down,
        "bytes_dense": end.book.traffic.dense,
        "bytes_evaluation": end.book.traffic.evaluation,
        **_devices(config, end, about.plan),
        **_best(config, end),
        "rounds": config.rounds,
        "rounds_completed": end.completed,
        "failures": end.book.failed,
        "seconds": round(about.seconds, 3),
    }


def _quality(config: RunConfig, end: State, tests: Mapping[str, Totals]) -> Summary:
    """What was measured on test: the run, its baselines, new clients, and clients' own models."""
    (_, final), *baselines = tests.items()
    return {
        "dense_at_pruning": quality(end.dense_at_pruning or {}, config),
        "final": quality(final, config),
        **{arm: quality(totals, config) for arm, totals in baselines},
        **({"newcomers": quality(end.tested_new, config)} if end.tested_new else {}),
        **({"own": quality(end.tested_own, config)} if end.tested_own else {}),
    }


def _intervals(end: State, tests: Mapping[str, Totals]) -> Summary:
    (_, final), *baselines = tests.items()
    every = {"dense_at_pruning": end.dense_at_pruning, "final": final, **dict(baselines)}
    every |= {"newcomers": end.tested_new, "own": end.tested_own}
    found = {name: intervals(totals or {}) for name, totals in every.items()}
    return {"intervals": kept} if (kept := {n: f for n, f in found.items() if f}) else {}


def _spread_over_clients(config: RunConfig, end: State, tests: Mapping[str, Totals]) -> Summary:
    """How quality is spread over clients: the run, its baselines, own models, who never trained."""
    if not config.client_percentiles:
        return {}
    metric = tasks_of(config.plugin)[config.task].metric
    (_, final), *others = tests.items()
    others = [(arm, totals) for arm, totals in others if arm not in (LOCAL, CENTRAL)]
    arms = {"final": final, **dict(others)}
    arms |= {"own": end.tested_own or {}, "newcomers": end.tested_new or {}}
    off = 2 * rank_spread(config)
    found = {arm: client_percentiles(metric, totals, off) for arm, totals in arms.items()}
    return {"client_spread": {"of": figure_name(metric)} | {a: f for a, f in found.items() if f}}


def _best(config: RunConfig, end: State) -> Summary:
    """Which round's model the result is, and after which one nothing better was waited for."""
    out: Summary = {}
    if config.save == "best" and end.best is not None:
        out["best_round"] = end.best.round
    if config.patience and end.best is not None and end.round < config.rounds:
        out["ended_early"] = end.round
    return out


def _devices(config: Adapting, end: State, plan: Plan | None) -> Summary:
    """The simulated devices: how many of each class, and what the run took them."""
    if plan is None or not plan.fleet:
        return {}
    classes = {
        p.name: {
            "clients": sum(q.name == p.name for q in plan.fleet),
            "fits": p.memory >= bytes_needed(end.model, plan, i),
            **({"part": client_parts(plan.config)[plan.tiers[i]]} if plan.parts else {}),
            **({"rank": config.ranks[plan.tiers[i]]} if plan.tiers and not plan.parts else {}),
        }
        for p, i in {p: i for i, p in enumerate(plan.fleet)}.items()
    }
    clock, joules = end.book.clock, end.book.joules
    return {"devices": {"seconds": clock, "joules": joules, "classes": classes}}


def population_of(config: RunConfig) -> dict[str, int]:
    """Who the clients of the user's data are, and what of it no client holds; empty for other data.

    How many have too little to be measured on is their own affair where their answers are.
    """
    ask = tasks_of(config.plugin)[config.task].population
    try:
        found = None if ask is None else ask(config)
    except (ValueError, OSError):  # a server of devices has no data; a run in one place had it
        found = None
    if found is None:
        return {}
    return asdict(replace(found, train_only=0) if hides(config) else found)


def _own(end: State, about: About) -> Summary:
    """How sparse the clients' own models are, and what each has of the model for itself.

    Nothing of the latter where all have the same.
    """
    if about.plan is None:
        return {}
    masks = own_masks(end, about.plan, about.sizes)
    sparsity = own_sparsity(masks, about.plan)
    out: Summary = {} if sparsity is None else {"own_sparsity": sparsity, "short": 0.0}
    kept = end.model.masks
    differ = any(not torch.equal(own[name], kept[name]) for own in masks for name in kept)
    if differ or any(part != 1.0 for part in about.plan.parts):
        out["clients_have"] = "parts" if method_of(about.plan.config).parts else "masks"
    return out


def stopped(config: RunConfig, end: State) -> dict[str, str]:
    """Why a run ended before its last round, if its privacy budget made it do so."""
    waited = config.patience and end.best is not None and end.best.waited >= config.patience
    if end.round == config.rounds or waited:
        return {}
    due = end.round + 1
    return {"stopped": f"round {due} of {config.rounds} would exceed epsilon={config.epsilon:g}"}


def failed(end: State, rows: Sequence[Row], privacy: Summary) -> dict[str, str]:
    """Why a run came to nothing, with the first failure of a client; nothing where it did not."""
    if end.completed:
        return {}
    failures = [f for row in rows for f in row["failures"]]
    why = str(privacy.get("stopped", "too few clients answered"))
    if failures:
        first = next((f for f in failures if f["phase"] == "tune"), failures[0])
        field_ = f"{first['field']}: " if first["field"] else ""
        why += f"; client {first['partition']}, phase {first['phase']}: {field_}{first['reason']}"
    return {"failed": f"no round was completed: {why}"}
