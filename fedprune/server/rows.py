"""One row per round: what `rounds.jsonl` holds, all of it deterministic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedprune.codec.masks import mask_digest
from fedprune.config import RunConfig
from fedprune.config.rates import learning_rate
from fedprune.protocol.aggregate import Aggregate
from fedprune.server.diagnostics import Notes
from fedprune.server.plan import Plan
from fedprune.server.state import State, Totals
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.measures import error_of_mean, measures, shown_columns
from fedprune.tensors.named import count_kept, digest

Row = dict[str, Any]


def quality(totals: Totals, config: RunConfig) -> dict[str, float] | None:
    """Mean loss, what else the task measures, and labels; None where nothing was measured.

    Without what is no number: of counts that noise brought to 0 there is no F1.
    """
    if not totals.get("count"):
        return None
    task = tasks_of(config.plugin)[config.task]
    scale = task.scale(config) if task.scale else 1.0
    found = measures(totals, task.metric, scale)
    return {n: v for n, v in found.items() if math.isfinite(v)} | {"count": int(totals["count"])}


def zeros(state: State) -> int:
    """How many kept weights are exactly 0.0, as proximal steps make some; they are not pruned."""
    return sum(int(((state.weights[n] == 0) & m).sum()) for n, m in state.masks.items())


def row(
    state: State,
    plan: Plan,
    cohort: Sequence[int],
    changes: Aggregate,
    totals: Totals,
    notes: Notes,
    phase: str,
) -> Row:
    """One row of the report: deterministic, no times. Bytes are cumulative."""
    measured = quality(totals, plan.config) or {}
    columns = shown_columns(tasks_of(plan.config.plugin)[plan.config.task].metric)
    layout = plan.layout
    removed, book = layout.whole - count_kept(state.masks), state.book
    return {
        "round": state.round,
        "phase": phase,
        "sparsity": removed / layout.whole,
        "removed": removed,
        "zeros": zeros(state) if plan.config.shrinkage == "proximal" else None,
        "parameters": layout.parameters,
        **{name: measured.get(name) for name in columns},
        "measures": {n: v for n, v in measured.items() if n not in (*columns, "count")} or None,
        "train_loss": _mean(changes, "loss"),
        "divergence": _mean(changes, "divergence"),
        "lr": learning_rate(plan.config, state.round),
        "cohort": list(cohort),
        "answered": len(changes.answered),
        "failures": [vars(failure) for failure in book.failures],
        "notices": list(book.notices) or None,
        "bytes_up": book.traffic.up,
        "bytes_down": book.traffic.down,
        "bytes_evaluation": book.traffic.evaluation,
        "bytes_dense": book.traffic.dense,
        **_said(notes, totals, plan.config),
        **({"clock": book.clock, "joules": book.joules} if plan.fleet else {}),
        "mask_digest": mask_digest(layout.in_origin(state.masks)),
        "weights_digest": digest(state.weights),
    }


def _mean(changes: Aggregate, name: str) -> float | None:
    """What the clients summed up, over the labels that they trained on; None without any."""
    count = changes.totals.get("count")
    return changes.totals[name] / count if count and name in changes.totals else None


def _said(notes: Notes, totals: Totals, config: RunConfig) -> Row:
    """What the round's notes say; only methods with a word of their own have its column."""
    said = {n: v for n, v in vars(notes).items() if n != "method" or v is not None}
    if config.measure_cohort:  # of everyone there is no error of a sample
        error = error_of_mean(totals, config.clients)
        said |= {"measured_by": int(totals.get("clients", 0)), "loss_error": error}
    return said
