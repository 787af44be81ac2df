"""The summary of a run: ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fedprune.compression.masks import mask_digest
from fedprune.config import RunConfig
from fedprune.plugins import tasks_of
from fedprune.pruning.flops import flops
from fedprune.pruning.layout import Layout
from fedprune.report.rows import quality
from fedprune.state import State, Totals
from fedprune.tensors import Masks, count_kept, digest

Summary = dict[str, Any]


@dataclass(frozen=True)
class About:
    """What a summary says beside the states.

    Attributes:
        model: the model's class.
        sizes: labels in each partition's training part.
        seconds: how long it took.
        naive: what label frequencies alone reach on test, by measure.
        positions: rows that each prunable layer sees in one example.
    """

    model: str
    sizes: Mapping[int, int]
    seconds: float
    naive: Mapping[str, float] = field(default_factory=dict)
    positions: Mapping[str, float] = field(default_factory=dict)


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
        layout: the model's layout.
        end: the pruned arm's last state.
        tests: test totals over all partitions, by arm, the pruned one first.
        about: the rest.
    """
    task = tasks_of(config.plugin)[config.task]
    prunable = sum(m.numel() for m in end.masks.values())
    kept = count_kept(end.masks)
    parameters = layout.parameters
    final, *baselines = tests.items()
    return {
        "task": config.task,
        "model": about.model,
        "family": config.model,
        "metric": task.metric,
        "unit": task.unit,
        "seed": config.seed,
        "split": config.split,
        "clients": len(about.sizes),
        "cohort": config.cohort,
        "hosts": config.hosts,
        "engine": config.engine,
        "shard_sizes": [about.sizes[p] for p in sorted(about.sizes)],
        "sparsity": (prunable - kept) / prunable,
        "sparsity_asked": config.sparsity,
        "reached": not end.owed,
        **_flops(end.masks, about.positions),
        "sparsity_of_all": (prunable - kept) / parameters,
        "parameters": parameters,
        "prunable_parameters": prunable,
        "kept_parameters": kept,
        "not_prunable": list(layout.spared),
        "frozen": list(layout.frozen),
        "layers": [
            {"name": name, "kept": int(m.sum()), "total": m.numel()}
            for name, m in end.masks.items()
        ],
        "mask_digest": mask_digest(end.masks),
        "weights_digest": digest(end.weights),
        "quality": {
            "dense_at_pruning": quality(end.dense_at_pruning or {}),
            "final": quality(final[1]),
            **{arm: quality(totals) for arm, totals in baselines},
        },
        "naive": dict(about.naive),
        "bytes_up": end.traffic.up,
        "bytes_down": end.traffic.down,
        "bytes_dense": end.traffic.dense,
        "bytes_evaluation": end.traffic.evaluation,
        "rounds": config.rounds,
        "rounds_completed": end.completed,
        "failures": end.failed,
        "seconds": round(about.seconds, 3),
    }


def _flops(masks: Masks, positions: Mapping[str, float]) -> Summary:
    """FLOPs of the prunable layers for one example: as counted, zeros are not yet skipped."""
    if not positions:
        return {}
    full = {name: torch.ones_like(m) for name, m in masks.items()}
    return {"flops_dense": flops(full, positions), "flops_kept": flops(masks, positions)}
