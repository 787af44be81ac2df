"""One row per round: what `rounds.jsonl` holds, all of it deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedprune.compression.masks import mask_digest
from fedprune.learning.training import learning_rate
from fedprune.messages import Folded
from fedprune.notes import Notes
from fedprune.state import Plan, State, Totals
from fedprune.tasks.metrics import measures
from fedprune.tensors import count_kept, digest

Row = dict[str, Any]

_ALWAYS = {"loss", "perplexity", "accuracy", "count"}


def quality(totals: Totals) -> dict[str, float] | None:
    """Mean loss, perplexity (its exponential), accuracy, what else the task measures, labels."""
    if not totals.get("count"):
        return None
    return {**measures(totals), "count": int(totals["count"])}


def zeros(state: State) -> int:
    """How many kept weights are exactly 0.0, as proximal steps make some; they are not pruned."""
    return sum(int(((state.weights[n] == 0) & m).sum()) for n, m in state.masks.items())


def row(
    state: State,
    plan: Plan,
    cohort: Sequence[int],
    changes: Folded,
    totals: Totals,
    notes: Notes,
) -> Row:
    """One row of the report: deterministic, no times. Bytes are cumulative."""
    measured = quality(totals) or {}
    layout = plan.layout
    removed = layout.whole - count_kept(state.masks)
    steps = changes.totals.get("count")
    over = state.pace is not None and state.pace.done and notes.adaptive is None
    return {
        "round": state.round,
        "phase": "recover" if over else plan.phase(state.round),
        "sparsity": removed / layout.whole,
        "removed": removed,
        "zeros": zeros(state) if plan.config.shrinkage == "proximal" else None,
        "parameters": layout.parameters,
        "loss": measured.get("loss"),
        "perplexity": measured.get("perplexity"),
        "accuracy": measured.get("accuracy"),
        "measures": {n: v for n, v in measured.items() if n not in _ALWAYS} or None,
        "train_loss": changes.totals["loss"] / steps
        if steps and "loss" in changes.totals
        else None,
        "divergence": changes.totals["divergence"] / steps
        if steps and "divergence" in changes.totals
        else None,
        "lr": learning_rate(plan.config, state.round),
        "cohort": list(cohort),
        "answered": len(changes.answered),
        "failures": [vars(failure) for failure in state.failures],
        "notices": list(state.notices) or None,
        "bytes_up": state.traffic.up,
        "bytes_down": state.traffic.down,
        "bytes_evaluation": state.traffic.evaluation,
        "bytes_dense": state.traffic.dense,
        **vars(notes),
        "mask_digest": mask_digest(layout.in_origin(state.masks)),
        "weights_digest": digest(state.weights),
    }
