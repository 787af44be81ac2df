"""The table of an arm's rounds: a column a figure, cells as words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from fedprune.report.reading import (
    NO_VALUE,
    Run,
    duration,
    left_out_text,
    metric_text,
    percent,
    significant,
    size,
    whole,
    worded,
)
from fedprune.report.tables import Table
from fedprune.server.rows import Row


def round_table(run: Run, arm: str) -> Table:
    """Every round of one arm."""
    columns: dict[str, Callable[[Row], str]] = {
        "round": lambda row: str(row["round"]),
        "phase": lambda row: str(row.get("phase", NO_VALUE)),
        "sparsity": lambda row: percent(row.get("sparsity")),
        "removed": lambda row: whole(row.get("removed")),
        "loss": _loss_cell,
        worded(run.metric): lambda row: metric_text(run.metric, row.get(run.metric)),
        "train loss": lambda row: significant(row.get("train_loss")),
        "lr": lambda row: significant(row.get("lr")),
        "answered": lambda row: f"{whole(row.get('answered'))} of {len(row.get('cohort') or [])}",
        "failures": lambda row: str(len(row.get("failures") or [])),
        "up": lambda row: size(row.get("bytes_up")),
        "down": lambda row: size(row.get("bytes_down")),
        "dense FedAvg": lambda row: size(row.get("bytes_dense")),
        "evaluation": lambda row: size(row.get("bytes_evaluation")),
        "agreement": lambda row: percent(row.get("agreement")),
        "seconds": lambda row: duration(run.seconds.get((arm, row["round"]))),
        "mask": lambda row: str(row.get("mask_digest") or NO_VALUE)[:8],
    }
    own = [row for row in run.rows if row["arm"] == arm]
    filled = [key for key in _SELDOM if any(row.get(key) is not None for row in own)]
    columns |= {_SELDOM[key][0]: functools.partial(_seldom_cell, key) for key in filled}
    rows = [[cell(row) for cell in columns.values()] for row in own]
    return Table(list(columns), rows, ("phase", "mask"))


def _loss_cell(row: Row) -> str:
    """The loss, with its standard error where some clients stand for all."""
    error = row.get("loss_error")
    told = significant(row.get("loss"))
    return told if error is None else f"{told} ± {significant(error)}"


def adaptive_cell(tried: Mapping[str, Any]) -> str:
    """What an adaptive schedule did in a round."""
    losses = [loss for _, loss in tried["tried"]]
    if not tried["took"]:
        return str(tried["action"])
    return (
        f"{tried['action']}: loss {significant(losses[0])} to {significant(losses[tried['took']])}"
    )


def blend_cell(blend: Mapping[str, Any]) -> str:
    """Which share of the change was kept."""
    shares = sorted(set(blend.get("shares", {}).values()))
    if not shares:
        return str(blend["action"])
    return f"{shares[0]:g}" if len(shares) == 1 else f"{shares[0]:g} to {shares[-1]:g}"


def reduced_cell(reduced: Mapping[str, Any]) -> str:
    """What ``--reduce`` took out in a round, and the largest error that it made."""
    ranks, errors = reduced.get("ranks", {}), [*reduced.get("rank_errors", {}).values()]
    channels = reduced.get("channels", [])
    errors += [error for error in reduced.get("merge_errors", {}).values() if error is not None]
    parts = [
        f"{sum(reduced.get('dead', {}).values())} dead units" if reduced.get("dead") else "",
        f"{sum(reduced.get('merged', {}).values())} merged" if reduced.get("merged") else "",
        f"{len(reduced.get('shared', []))} matrices shared" if reduced.get("shared") else "",
        "{} to {} channels between layers".format(*channels) if channels else "",
        f"{len(ranks)} factored, rank {min(ranks.values())} to {max(ranks.values())}"
        if ranks
        else "",
        f"error up to {max(errors):.2g}" if errors else "",
        f"{reduced['parameters']:,} to {reduced['parameters_after']:,} parameters",
    ]
    return "; ".join(part for part in parts if part)


_SELDOM: dict[str, tuple[str, Callable[[Any], str]]] = {
    "overlap": ("mask overlap after the wire", percent),
    "standard_error": ("standard error / score", significant),
    "exchanged": ("exchanged", whole),
    "adaptive": ("tried", adaptive_cell),
    "blend": ("share of the change kept", blend_cell),
    "reduced": ("redundancy taken out", reduced_cell),
    "zeros": ("kept, and exactly 0", whole),
    "divergence": ("from the teacher, nats", significant),
    "refit": ("error after the fit", percent),
    "left_out": ("left out", left_out_text),
}
"""Columns that only some configurations fill."""


def _seldom_cell(key: str, row: Row) -> str:
    value = row.get(key)
    return NO_VALUE if value is None else _SELDOM[key][1](value)
