"""The figures of a study: quality against what it costs, mean ranks, layers, agreement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from fedprune.report.drawing import INK, SERIES, canvas, legend, percentages, styled
from fedprune.report.reading import (
    density,
    number,
    percent,
    ratio,
    series,
    without_middle,
    worded,
)
from fedprune.study.comparison import Ranking, SeedSpread, front_of, is_higher, seed_spread
from fedprune.study.outcomes import StudyOutcome
from fedprune.tasks.measures import metric_of

MARKERS = "os^Dvp*X"
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Cost:
    """What quality is held against."""

    key: str
    words: str  # of the axis
    of: Callable[[StudyOutcome], float]  # its value for a run; NaN where unknown
    share: bool = False  # it is between 0 and 1, and shown as a percentage
    log: bool = False  # it spans orders of magnitude


def _part(o: StudyOutcome, key: str, part: str) -> Any:
    return (o.said(key) or {}).get(part)


COSTS = (
    Cost("density", "weights kept, of prunable", lambda o: 1 - number(o.said("sparsity")), True),
    Cost(
        *("bytes", "MB sent up and down by all clients"),
        lambda o: (number(o.said("bytes_up")) + number(o.said("bytes_down"))) / 1e6,
    ),
    Cost("disk", "kB on disk", lambda o: number(_part(o, "bytes_on_disk", "pruned")) / 1e3),
    Cost(
        *("flops", "FLOPs of kept weights, of dense"),
        lambda o: ratio(o.said("flops_kept"), o.said("flops_dense")),
        share=True,
    ),
    Cost(
        *("clock", "seconds of simulated devices"),
        lambda o: number(_part(o, "devices", "seconds")),
        log=True,
    ),
    Cost("epsilon", "epsilon", lambda o: number(_part(o, "privacy", "total")), log=True),
)


def looks(labels: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and dashes of each label: no two alike for the first 32."""
    return {
        label: (SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)], DASHES[i // len(SERIES) % 4])
        for i, label in enumerate(labels)
    }


@dataclass(frozen=True)
class CostPoint:
    """The repetitions of a place in the grid: their mean cost, and the spread of their quality."""

    label: str
    cost: float
    quality: SeedSpread


def points_of(
    outcomes: Sequence[Sequence[StudyOutcome]], compared: str, cost: Cost
) -> list[CostPoint]:
    """A point for each group of repetitions whose cost and quality are known."""
    found = [
        CostPoint(
            same[0].labels[compared],
            seed_spread([cost.of(o) for o in same]).mean,
            seed_spread([o.test(o.metric) for o in same]),
        )
        for same in outcomes
    ]
    return [p for p in found if math.isfinite(p.cost) and p.quality.count]


@styled
def cost_figure(
    points: Sequence[CostPoint], labels: Sequence[str], metric: str, cost: Cost
) -> Figure:
    """Quality against a cost, a line for each label, the front that no other point beats ringed."""
    figure, axes = canvas(f"test {worded(metric)}")
    for label, (color, marker, dashes) in looks(labels).items():
        own = sorted((p for p in points if p.label == label), key=lambda p: p.cost)
        if own:
            x, y = [p.cost for p in own], [p.quality.mean for p in own]
            bars = [0.0 if math.isnan(p.quality.deviation) else p.quality.deviation for p in own]
            axes.errorbar(
                x, y, bars, color=color, marker=marker, ls=dashes, label=label, elinewidth=0.8
            )
    pairs = [(p.cost, p.quality.mean) for p in points]
    best = [points[i] for i in front_of(pairs, higher=is_higher(metric))]
    axes.plot(
        *([p.cost for p in best], [p.quality.mean for p in best]),
        "o",
        ms=8,
        mfc="none",
        mec=INK,
        mew=0.8,
    )
    _scaled(axes, points, metric, cost)
    legend(figure, *axes.get_legend_handles_labels())
    return figure


def _scaled(axes: Axes, points: Sequence[CostPoint], metric: str, cost: Cost) -> None:
    axes.set_xlabel(cost.words)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if cost.share:
        axes.xaxis.set_major_formatter(percentages())
    if cost.log:
        axes.set_xscale("log")
    values, form = [p.quality.mean for p in points], metric_of(metric).form
    if form == "share":
        axes.yaxis.set_major_formatter(percentages())
    elif form == "level" and min(values) > 0 and max(values) > 4 * min(values):
        axes.set_yscale("log")


@styled
def ranks_figure(ranking: Ranking) -> Figure:
    """Mean ranks on a line, best on the left; a bar joins those that are not told apart."""
    names, bars = list(ranking.ranks), ranking.together()
    figure, axes = canvas("", height=0.9 + 0.17 * (len(names) + len(bars)))
    for place, name in enumerate(names):
        rank, depth = ranking.ranks[name], -(place + 1.0)
        axes.plot([rank, rank, len(names) + 0.3], [0, depth, depth], color=INK, lw=0.7)
        axes.text(len(names) + 0.35, depth, f"{name} ({rank:.2f})", va="center", fontsize=7.5)
    for place, bar in enumerate(bars):
        ends = [ranking.ranks[bar[0]] - 0.04, ranking.ranks[bar[-1]] + 0.04]
        axes.plot(ends, [0.5 + 0.6 * place] * 2, color=SERIES[0], lw=3)
    axes.plot([1, 1 + ranking.critical], [1.1 + 0.6 * len(bars)] * 2, color=INK, lw=1.5)
    axes.text(1, 1.6 + 0.6 * len(bars), f"critical difference {ranking.critical:.2f}", fontsize=7.5)
    axes.set(xlim=(0.9, len(names) + 2.2), ylim=(-len(names) - 0.6, 2.4 + 0.6 * len(bars)))
    axes.set_xticks(range(1, len(names) + 1))
    axes.set_yticks([])
    axes.spines["bottom"].set_position(("data", 0))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    return figure


@styled
def densities_figure(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Kept share of every prunable tensor, a row for each label; darker keeps more."""
    count = len(next(iter(found.values())))
    figure, axes = canvas("", height=1.2 + 0.19 * len(found))
    shares = [[density(dict(layer)) for layer in its] for its in found.values()]
    most = max(max(row) for row in shares) or 1.0
    for place, row in enumerate(shares):
        for column, share in enumerate(row):
            shade = 0.04 + 0.96 * share / most
            corner = (column + 0.54, place - 0.45)
            axes.add_patch(Rectangle(corner, 0.92, 0.9, facecolor=SERIES[0], alpha=shade, lw=0))
    axes.set(xlim=(0.5, count + 0.5), ylim=(len(found) - 0.5, -0.5))
    axes.set_yticks(range(len(found)), [without_middle(label) for label in found], fontsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set_xlabel(f"prunable tensor, of {count}, in the model's order")
    axes.grid(visible=False)
    scale = [(part, percent(part * most)) for part in (0, 1 / 3, 2 / 3, 1)]
    shades = [Patch(color=SERIES[0], alpha=0.04 + 0.96 * p, lw=0, label=t) for p, t in scale]
    legend(figure, shades, [text for _, text in scale])
    return figure


@styled
def agreement_over_rounds(
    found: Mapping[str, Sequence[StudyOutcome]], labels: Sequence[str]
) -> Figure:
    """Overlap of the clients' own masks, a line for each label: the mean over its runs."""
    figure, axes = canvas("kept weights in common")
    for label, (color, marker, dashes) in looks(labels).items():
        values = agreements(found.get(label, ()))
        if values:
            axes.plot(*zip(*values, strict=True), dashes, color=color, marker=marker, label=label)
    axes.yaxis.set_major_formatter(percentages())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    legend(figure, *axes.get_legend_handles_labels())
    return figure


def agreements(outcomes: Sequence[StudyOutcome]) -> list[tuple[int, float]]:
    """Rounds in which the clients' masks were compared, with the mean agreement over runs."""
    values: dict[int, list[float]] = {}
    for outcome in outcomes:
        if outcome.run is not None:
            for at, value in zip(
                *series(outcome.run.rows, outcome.run.main, "agreement"), strict=True
            ):
                values.setdefault(at, []).append(value)
    means = [(at, seed_spread(its).mean) for at, its in sorted(values.items())]
    return [(at, mean) for at, mean in means if math.isfinite(mean)]
