"""A model's size, operations, speed and quality beside another's: the table that people compare.

``fedprune measure`` prints it and every run's report has it, from the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedprune.records.figures import Figures
from fedprune.report.reading import (
    NO_VALUE,
    Run,
    metric_text,
    number,
    percent,
    ratio,
    significant,
    size,
    whole,
    worded,
)
from fedprune.report.tables import Table

UNCHANGED = (
    "Nothing was cut out: zeros make the file smaller, but a forward pass multiplies by every one "
    "of them and takes as long as before."
)


def figure_table(named: Mapping[str, Figures], metric: str) -> Table:
    """One column for each model, a last one for what the first is of the second.

    What nobody measured has no row.
    """
    first, *others = named.values()
    rows = []
    for key, words, say in _ROWS:
        if any(f.get(key) is not None for f in named.values()):
            share = percent(ratio(first.get(key), others[0].get(key))) if others else NO_VALUE
            rows.append([words, *(say(f.get(key)) for f in named.values()), share])
    if any(f.get("latency") for f in named.values()):
        rows.append([LATENCY, *(_time(f.get("latency")) for f in named.values()), _gain(first)])
    if any(f.get("quality") for f in named.values()):
        reached = [(f.get("quality") or {}).get(metric) for f in named.values()]
        rows.append(
            [f"test {worded(metric)}", *(metric_text(metric, value) for value in reached), NO_VALUE]
        )
    columns = ["figure", *named, *(["of it"] if others else [])]
    return Table(columns, [row[: len(columns)] for row in rows], ("figure",))


LATENCY = "forward pass (quartiles)"

_ROWS = (
    ("parameters", "parameters", whole),
    ("nonzeros", "non-zero", whole),
    ("bytes_dense", "all numbers in fp32", size),
    ("bytes_sparse", "sparse file", size),
    ("bytes_held", "tensors in memory", size),
    ("bytes_on_disk", "on disk", size),
    ("flops", "FLOPs of an example", significant),
    ("peak_memory", "peak memory of a pass", size),
)


def _time(spread: Sequence[float] | None) -> str:
    if not spread:
        return NO_VALUE
    median, low, high = (significant(1000 * number(value)) for value in spread)
    return f"{median} ms ({low} to {high})"


def _gain(figures: Figures) -> str:
    if not figures.get("speedup"):
        return NO_VALUE
    median, low, high = map(significant, figures["speedup"])
    return f"{median} times as fast ({low} to {high})"


def notes_on(model: Figures, other: Figures) -> list[str]:
    """What has to be said beside the table."""
    sparse = number(model.get("bytes_sparse")) < number(model.get("bytes_dense"))
    return [UNCHANGED] if sparse and model["parameters"] == other["parameters"] else []


def figures_in(run: Run) -> tuple[Table, list[str]]:
    """The table of a run's report and what has to be said beside it; empty where not written."""
    named: dict[str, Figures] = {n: dict(f) for n, f in (run.figures or {}).items()}
    if not named:
        return Table([], []), []
    model = next(iter(named))
    return figure_table(named, run.metric), notes_on(named[model], named["dense"])
