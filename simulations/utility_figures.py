"""The table and the curve of quality against epsilon."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from fedprune.attacks.page import Table
from fedprune.report.drawing import canvas, legend, percentages, styled


@dataclass(frozen=True)
class Cell:
    """One line of the study: a setting, a method and a budget, over seeds."""

    setting: str  # what noise covers
    method: str  # how the mask was decided
    epsilon: float | None  # the budget; None: without noise
    spent: float  # what the ledger came to, the largest over seeds
    quality: list[float] = field(default_factory=list)  # by seed, on the panel's test parts
    # part of the mask without noise that is kept, by seed; empty without such a mask
    overlap: list[float] = field(default_factory=list)


TALLEST = 40.0  # The largest perplexity in the picture


def utility_table(cells: Sequence[Cell], metric: str) -> Table:
    """A row for each cell: what noise covers, the method, epsilon, quality and overlap."""
    columns = ["noise covers", "mask by", "epsilon", "spent", f"{metric}", "overlap"]
    rows = [
        [
            c.setting,
            c.method,
            "infinite" if c.epsilon is None else f"{c.epsilon:g}",
            f"{c.spent:.2f}" if c.epsilon is not None else "-",
            _spread(c.quality, metric),
            _spread(c.overlap, "accuracy") if c.overlap else "-",
        ]
        for c in cells
    ]
    return Table(columns, rows, ("noise covers", "mask by"))


def _spread(values: Sequence[float], metric: str) -> str:
    mean = statistics.fmean(values)
    if metric == "perplexity" and not mean < USELESS:
        return f"over {USELESS:,.0f}"
    form = ".2f" if metric == "perplexity" else ".1%"
    return f"{mean:{form}}" + (f" ({statistics.stdev(values):{form}})" if len(values) > 1 else "")


USELESS = 1000.0
"""A perplexity beyond which it does not matter how large it is: guessing has less than 100."""


_DASHES = {"unit scores": "-", "weight scores": "--", "magnitude": "-.", "random": ":"}


@styled
def utility_curve(cells: Sequence[Cell], metric: str) -> Figure:
    """Quality against epsilon, a line for each setting and method; without noise to the right."""
    figure, axes = canvas(metric, 3.6)
    budgets = sorted({c.epsilon for c in cells if c.epsilon is not None})
    places = {epsilon: i for i, epsilon in enumerate(budgets)}
    marks = dict(zip(dict.fromkeys(c.setting for c in cells), "os^", strict=False))
    handles, labels = list[Artist](), list[str]()
    shown = [c for c in cells if metric != "perplexity" or statistics.fmean(c.quality) < TALLEST]
    shown.sort(key=lambda c: math.inf if c.epsilon is None else c.epsilon)
    for name in sorted({(c.setting, c.method) for c in shown}):
        line = [c for c in shown if (c.setting, c.method) == name]
        drawn = axes.errorbar(
            [places.get(c.epsilon or 0.0, len(budgets)) for c in line],
            [statistics.fmean(c.quality) for c in line],
            [statistics.stdev(c.quality) if len(c.quality) > 1 else 0.0 for c in line],
            linestyle=_DASHES[name[1]],
            marker=marks[name[0]],
            markersize=4,
        )
        handles.append(drawn.lines[0])
        labels.append(f"{name[0]}: {name[1]}")
    axes.set_xticks(range(len(budgets) + 1), [*(f"{e:g}" for e in budgets), "infinite"])
    axes.set_xlabel("epsilon")
    if metric == "perplexity":
        axes.set_yscale("log")
        axes.set_yticks([10, 12, 15, 20, 30, 40], labels=["10", "12", "15", "20", "30", "40"])
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_formatter(percentages())
    legend(figure, handles, labels)
    return figure
