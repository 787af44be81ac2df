"""The summary of a run: ``summary.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fedprune.codec.masks import mask_digest
from fedprune.config import RunConfig
from fedprune.config.options import CENTRAL, LOCAL
from fedprune.methods.acting import done
from fedprune.methods.global_mask import cost_of
from fedprune.methods.measuring import own_sparsity
from fedprune.options.refusal import counted
from fedprune.protocol.client_privacy import hides
from fedprune.records.staying import (
    nearly_empty,
    staying_kinds,
    uncut,
    uncut_summary,
)
from fedprune.redundancy.spectrum import spectrum_of
from fedprune.server.fitting import bytes_needed
from fedprune.server.plan import Plan
from fedprune.server.rows import quality
from fedprune.server.state import State, Totals
from fedprune.structure.cuts import alive_units
from fedprune.structure.edits import Edits, to_json
from fedprune.structure.flops import flops
from fedprune.structure.groups import Group
from fedprune.structure.layout import Layout, as_rows
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.client_spread import client_percentiles, figure_name
from fedprune.tasks.coverage import reading_of
from fedprune.tasks.task import class_names_of
from fedprune.tensors.named import Masks, count_kept, digest, kept_in

Summary = dict[str, Any]

OWN_DATA = "devices' own"
"""What a summary says of the split where there was none."""


@dataclass(frozen=True)
class About:
    """What a summary says beside the states.

    Attributes:
        model: the model's class.
        sizes: labels in each partition's training part.
        seconds: how long it took.
        naive: what label frequencies alone reach on test, by measure.
        plan: the plan of the last state, with the layout that its model has come to.
        own_data: whether clients were devices with data of their own: then nothing was split.
    """

    model: str
    sizes: Mapping[int, int]
    seconds: float
    naive: Mapping[str, float] = field(default_factory=dict)
    plan: Plan | None = None
    own_data: bool = False


def summary_of(
    config: RunConfig,
    layout: Layout,
    end: State,
    tests: Mapping[str, Totals],
    about: About,
) -> Summary:
    """What a run came to.

    Args:
        config: what ran.
        layout: the dense model's layout.
        end: the pruned arm's last state.
        tests: test totals over all partitions, by arm, the pruned one first.
        about: the rest.
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
        **_sizes(config, layout, end, about),
        **_own(end, about),
        "quality": _quality(config, end, tests),
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


def _spread_over_clients(config: RunConfig, end: State, tests: Mapping[str, Totals]) -> Summary:
    """How quality is spread over clients: the run, its baselines, and who never trained."""
    if not config.client_percentiles:
        return {}
    metric = tasks_of(config.plugin)[config.task].metric
    (_, final), *others = tests.items()
    others = [(arm, totals) for arm, totals in others if arm not in (LOCAL, CENTRAL)]
    arms = {"final": final, **dict(others), "newcomers": end.tested_new or {}}
    found = {arm: client_percentiles(metric, totals) for arm, totals in arms.items()}
    return {"client_spread": {"of": figure_name(metric)} | {a: f for a, f in found.items() if f}}


def _best(config: RunConfig, end: State) -> Summary:
    """Which round's model the result is, and after which one nothing better was waited for."""
    out: Summary = {}
    if config.save == "best" and end.best is not None:
        out["best_round"] = end.best.round
    if config.patience and end.best is not None and end.round < config.rounds:
        out["ended_early"] = end.round
    return out


def _devices(config: RunConfig, end: State, plan: Plan | None) -> Summary:
    """The simulated devices: how many of each class, and what the run took them."""
    if plan is None or not plan.fleet:
        return {}
    classes = {
        p.name: {
            "clients": sum(q.name == p.name for q in plan.fleet),
            "fits": p.memory >= bytes_needed(end.model, plan, i),
            **({"part": plan.parts[i]} if plan.parts else {}),
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
    """How sparse the clients' own models are, where the method gives them some."""
    found = None if about.plan is None else own_sparsity(end, about.plan, about.sizes)
    return {} if found is None else {"own_sparsity": found, "short": 0.0}


def _sizes(config: RunConfig, layout: Layout, end: State, about: About) -> Summary:
    """How much is left, in all and by layer, counted against the dense model."""
    plan, kept = about.plan, count_kept(end.masks)
    now = layout if plan is None else plan.layout
    masks, prunable, parameters = now.in_origin(end.masks), layout.whole, layout.parameters
    zeros = sum(m.numel() for m in end.masks.values()) - kept
    layers = [
        {"name": name, "kept": kept_in(m, m), "total": m.numel(), **_rank(name, end, now)}
        for name, m in masks.items()
    ]
    return {
        "sparsity": (prunable - kept) / prunable,
        "sparsity_asked": config.sparsity,
        "reached": not end.pending if plan is None else done(end, plan),
        "short": _short(config, (prunable - kept) / prunable, end, plan),
        "short_why": _why_short(config, end),
        **_flops(end.masks, plan),
        "sparsity_of_all": (parameters - now.parameters + zeros) / parameters,
        "parameters": parameters,
        "parameters_left": now.parameters,
        "edits": json.loads(to_json(end.edits)),
        "structure": units_left(layout, masks, end.edits),
        "prunable_parameters": prunable,
        "kept_parameters": kept,
        "not_prunable": list(layout.spared),
        "frozen": list(layout.frozen),
        "stays": staying_kinds(layout),
        "notes": [text for text in (*layout.notes, uncut_summary(uncut(config, layout))) if text],
        "layers": layers,
        "nearly_empty": nearly_empty(layers, config.unit),
        "mask_digest": mask_digest(masks),
        "weights_digest": digest(end.weights),
    }


def _short(config: RunConfig, sparsity: float, end: State, plan: Plan | None) -> float:
    """By how much the sparsity misses the one asked for, as whole units make it; else 0.0.

    Of a target of bytes or FLOPs, the part of it by which it is missed.
    """
    if plan is not None and (config.target_bytes or config.target_flops) and not end.pending:
        cost, target = cost_of(end.model, plan)
        return max(0.0, cost(end.masks) / target - 1.0) if end.edits == plan.edits else 0.0
    asked = config.sparsity or 0.0
    missed = asked - sparsity if config.schedule != "adaptive" else 0.0
    return missed if missed > LEAST_MISSED else 0.0


def _why_short(config: RunConfig, end: State) -> str:
    """Why a run may come short of what was asked for."""
    if end.pending and (void := end.round - end.completed):
        return f"{void} of {counted(end.round, 'round')} void, in which nothing changes"
    if config.target_bytes or config.target_flops:
        return "no mask that these scores give costs so little"
    if config.unit == "n:m" and config.unit_shape is not None:
        n, m = config.unit_shape
        return f"groups of fewer than {m} inputs keep more than {n} of {m}"
    return "the next unit is larger than what is left to remove"


LEAST_MISSED = 1e-3
"""Sparsities that differ by less are the same to a reader."""

MOST_NUMBERS = 2**21
"""Larger matrices have no spectrum in a summary: `fedprune analyse` takes its time."""

MOST_IN_ALL = 2**25
"""Nor have those of models with more prunable weights than this."""


def _rank(name: str, end: State, now: Layout) -> Summary:
    """The effective rank of what is left of a matrix, and the largest there could be."""
    weight = end.weights.get(name)
    if weight is None or weight.numel() > MOST_NUMBERS or now.whole > MOST_IN_ALL:
        return {}
    matrix = as_rows(now, name, weight)
    return {"effective_rank": spectrum_of(matrix).effective_rank, "most": min(matrix.shape)}


def _flops(masks: Masks, plan: Plan | None) -> Summary:
    """FLOPs of the prunable layers for one example: as counted, zeros are not yet skipped."""
    if plan is None or not plan.flops_dense:
        return {}
    return {"flops_dense": plan.flops_dense, "flops_kept": flops(masks, plan.positions)}


def units_left(layout: Layout, masks: Masks, edits: Edits) -> list[Summary]:
    """Of every group of heads, neurons or channels of the dense model, which units are left.

    A unit is left while the mask keeps any of its weights; where its tensors were replaced by
    factors or are shared, until it is cut.
    """
    cut = {(edit.kind, edit.path): list(edit.kept) for edit in edits}
    return [
        {"path": group.path, "kind": group.kind, "of": len(group.parts[0].index), "kept": kept}
        for group in layout.structure.groups
        for kept in [_kept_units(group, masks, layout, cut)]
    ]


def _kept_units(
    group: Group, masks: Masks, layout: Layout, cut: Mapping[tuple[str, str], list[int]]
) -> list[int]:
    if all(part.tensor in masks for part in group.parts):
        return torch.nonzero(alive_units(group, masks, layout)).flatten().tolist()
    return cut.get((group.kind, group.path), list(range(len(group.parts[0].index))))
