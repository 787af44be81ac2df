"""The summary of a run: ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.compression.masks import mask_digest
from fedprune.config import RunConfig
from fedprune.plugins import tasks_of
from fedprune.pruning.layout import Layout
from fedprune.report.rows import quality
from fedprune.state import State, Totals
from fedprune.tensors import count_kept, digest

Summary = dict[str, Any]


def summary_of(
    config: RunConfig,
    layout: Layout,
    end: State,
    tests: Mapping[str, Totals],
    sizes: Mapping[int, int],
    model: str,
    seconds: float,
) -> Summary:
    """What a run came to.

    Args:
        config: what ran.
        layout: the model's layout.
        end: the pruned arm's last state.
        tests: test totals over all partitions, by arm, the pruned one first.
        sizes: labels in each partition's training part.
        model: the model's class.
        seconds: how long it took.
    """
    task = tasks_of(config.plugin)[config.task]
    prunable = sum(m.numel() for m in end.masks.values())
    kept = count_kept(end.masks)
    parameters = prunable + sum(layout.shapes[name].numel() for name in layout.spared)
    final, *baselines = tests.items()
    return {
        "task": config.task,
        "model": model,
        "metric": task.metric,
        "unit": task.unit,
        "seed": config.seed,
        "split": config.split,
        "clients": len(sizes),
        "cohort": config.cohort,
        "hosts": config.hosts,
        "engine": config.engine,
        "shard_sizes": [sizes[p] for p in sorted(sizes)],
        "sparsity": (prunable - kept) / prunable,
        "sparsity_asked": config.sparsity,
        "sparsity_of_all": (prunable - kept) / parameters,
        "parameters": parameters,
        "prunable_parameters": prunable,
        "kept_parameters": kept,
        "not_prunable": list(layout.spared),
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
        "bytes_up": end.traffic.up,
        "bytes_down": end.traffic.down,
        "bytes_dense": end.traffic.dense,
        "bytes_evaluation": end.traffic.evaluation,
        "rounds": config.rounds,
        "rounds_completed": end.completed,
        "failures": end.failed,
        "seconds": round(seconds, 3),
    }
