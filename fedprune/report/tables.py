"""The tables of a run: cells as words, ready for the page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedprune.report.intervals import has_interval, interval_words
from fedprune.report.reading import (
    NO_VALUE,
    SPACE,
    Run,
    density,
    metric_text,
    number,
    percent,
    significant,
    whole,
    worded,
)
from fedprune.server.rows import Row
from fedprune.tasks.measures import beside, metric_of

FAILURES_SHOWN, REASON_SHOWN = 200, 300
FAILURE_COLUMNS = ["arm", "round", "partition", "phase", "field", "reason"]


@dataclass(frozen=True)
class Table:
    """Cells as words, row by row; `words` names the columns that are text, not numbers."""

    columns: list[str]
    rows: list[list[str]]
    words: tuple[str, ...] = ()


def results(run: Run) -> dict[str, str]:
    """The entries of summary["quality"] that were measured, with the words for each."""
    known = {"dense_at_pruning": "dense, when pruning began", "final": f"{run.main}, at the end"}
    known |= {"own": "each client's own model", "newcomers": "clients that never trained"}
    measured = [name for name, value in (run.summary.get("quality") or {}).items() if value]
    return {name: known.get(name, f"{name} baseline, at the end") for name in measured}


def test_figure(run: Run, name: str, column: str) -> float:
    """One figure of an entry of summary["quality"], on the test split; NaN if unknown."""
    return number(((run.summary.get("quality") or {}).get(name) or {}).get(column))


def quality_table(run: Run) -> Table:
    """Quality on the test split, and how far each model is from the dense one.

    The last row is what the frequencies of labels reach without any model.
    """
    dense = test_figure(run, "dense_at_pruning", run.metric)
    naive = run.summary.get("naive") or {}
    shown = measured_columns(run)
    sure = {column for column in shown if has_interval(run, column)}
    heads = {c: [f"test {worded(c)}" if c in (run.metric, "loss") else worded(c)] for c in shown}
    heads = {c: [*head, *["95 % interval"] * (c in sure)] for c, head in heads.items()}
    rows = []
    for name, words in results(run).items():
        told = {c: [metric_text(c, test_figure(run, name, c))] for c in shown}
        told |= {c: [*told[c], interval_words(run, name, c)] for c in sure}
        value = test_figure(run, name, run.metric)
        moved = NO_VALUE if name == "dense_at_pruning" else change_cell(run.metric, value, dense)
        rows.append(_row(words, told, run.metric, moved))
    if naive:
        told = {c: [metric_text(c, number(naive.get(c))), *[NO_VALUE] * (c in sure)] for c in shown}
        rows.append(_row(f"{metric_of(run.metric).without} alone", told, run.metric, NO_VALUE))
    columns = _row("model", heads, run.metric, "since pruning began")
    return Table(columns, rows, ("model",))


def _row(first: str, cells: Mapping[str, list[str]], metric: str, moved: str) -> list[str]:
    """The metric's cells, how it moved, and the cells of everything else."""
    others = [cell for column, each in cells.items() if column != metric for cell in each]
    return [first, *cells[metric], moved, *others]


def spread_table(run: Run) -> Table:
    """How quality on test is spread over clients; without rows where it was not asked for."""
    told = run.summary.get("client_spread") or {}
    words = {**results(run), "newcomers": "clients that never trained"}
    keys = ("worst_tenth", "p10", "p50", "p90")
    rows = [
        [words.get(arm, arm), *(significant(found[k]) for k in keys), whole(found["clients"])]
        for arm, found in told.items()
        if arm != "of"
    ]
    columns = ["model", "mean of the worst tenth", "10 %", "median", "90 %", "clients"]
    return Table(columns, rows, ("model",))


def rank_sentence(run: Run) -> str:
    """How far noise may move the ranks of the spread; nothing where there is no noise."""
    off = ((run.summary.get("client_spread") or {}).get("final") or {}).get("rank_off")
    if not off:
        return ""
    return (
        f" Noise on the counts may move a rank by {off:.2g} points (two standard deviations): the "
        "10 % may be a percentile that far away. In the worst tenth the outermost clients, so many "
        "points, count as the next ones do."
    )


def measured_columns(run: Run) -> list[str]:
    """What is shown of quality on test: the metric, the loss, and what is measured beside them."""
    further = beside((run.summary.get("quality") or {}).get("final") or {}, run.metric)
    return list(dict.fromkeys([run.metric, "loss", *further]))


def change_cell(metric: str, value: float, reference: float) -> str:
    """Change with its sign: in points of a share, else as a share of the reference.

    Of a coefficient, which may be negative, the difference.
    """
    difference, form = value - reference, metric_of(metric).form
    if math.isnan(difference) or (form == "level" and not reference > 0):
        return NO_VALUE
    sign = "+" if difference > 0 else "\u2212" if difference < 0 else ""
    if form == "coefficient":
        return f"{sign}{significant(abs(difference))}"
    if form == "share":
        return f"{sign}{significant(100 * abs(difference))}{SPACE}points"
    return f"{sign}{percent(abs(difference) / reference)}"


def failures(run: Run) -> list[dict[str, Any]]:
    """Every refused answer of every arm with the round that refused it."""
    return [
        {**failure, "arm": row["arm"], "round": row["round"]}
        for row in run.rows
        for failure in row.get("failures") or []
    ]


def failure_table(run: Run) -> Table:
    """The first refused answers; a client wrote the reasons, so their length is bounded."""
    rows = [
        [shorten(failure.get(column)) for column in FAILURE_COLUMNS]
        for failure in failures(run)[:FAILURES_SHOWN]
    ]
    return Table(FAILURE_COLUMNS, rows, ("arm", "phase", "field", "reason"))


def shorten(value: Any) -> str:
    """A value as text of bounded length; a dash for nothing."""
    text = NO_VALUE if value is None else str(value)
    return text if len(text) <= REASON_SHOWN else f"{text[:REASON_SHOWN]}\u2026"


def layer_table(run: Run) -> Table:
    """Every prunable tensor in the model's order."""
    rows = [
        [
            str(layer["name"]),
            whole(layer["kept"]),
            whole(layer["total"]),
            percent(density(layer)),
            effective_rank(layer),
        ]
        for layer in run.summary.get("layers") or []
    ]
    return Table(["tensor", "kept", "of", "density", "effective rank"], rows, ("tensor",))


def staying_table(run: Run) -> Table:
    """What no mask is for, by kind, as a share of all parameters."""
    kinds: Mapping[str, Any] = run.summary.get("stays") or {}
    rows = [
        [kind, whole(entry["parameters"]), percent(entry["share"]), str(len(entry["tensors"]))]
        for kind, entry in kinds.items()
    ]
    return Table(
        ["what stays dense", "parameters", "of all", "tensors"], rows, ("what stays dense",)
    )


def effective_rank(layer: Row) -> str:
    """The exponential of the entropy of a matrix's singular values, of as many as there are."""
    rank, most = number(layer.get("effective_rank")), layer.get("most")
    return NO_VALUE if rank != rank else f"{rank:.1f} of {whole(most)}"


def digest_table(run: Run) -> Table:
    """What a repeated run must end with."""
    names = (("mask", "mask_digest"), ("weights", "weights_digest"))
    rows = [[name, str(run.summary[key])] for name, key in names if run.summary.get(key)]
    return Table(["of", "SHA-256"], rows, ("of", "SHA-256"))


def provenance_table(run: Run) -> Table:
    """When it was made, with which versions, from which code and data."""
    rows = [[k, str(v)] for k, v in (run.summary.get("provenance") or {}).items() if v]
    return Table(["of", "value"], rows, ("of", "value"))


def config_table(config: Mapping[str, Any]) -> Table:
    """Every key of the configuration with its value."""
    return Table(["key", "value"], flat_table(config), ("key", "value"))


def flat_table(config: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Keys and values, tables inside tables by dotted keys."""
    rows: list[list[str]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            rows += flat_table(value, f"{prefix}{key}.")
        else:
            listed = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append([f"{prefix}{key}", listed or "(empty)"])
    return rows
