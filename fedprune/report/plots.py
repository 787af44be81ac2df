"""Rows -> matplotlib figures, by the object API: nothing here touches pyplot's global state."""

import itertools
import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fedprune.options.refusal import counted
from fedprune.report.drawing import (
    ARMS,
    FAINT,
    INK,
    PAPER,
    TRACK,
    canvas,
    draw_line,
    finish,
    legend,
    percentages,
    styled,
)
from fedprune.report.reading import (
    SPACE,
    Run,
    arms,
    chance_levels,
    density,
    distinct_arms,
    grid,
    percent,
    pruning_rounds,
    series,
    short_name,
    whole,
    worded,
)
from fedprune.server.rows import Row
from fedprune.tasks.measures import metric_of

NAMED_BARS = 24  # more layers than this become a heat map


@styled
def quality_figure(rows: Sequence[Row], metric: str) -> Figure:
    """Validation quality over rounds, one line per arm; logarithmic where it spans a lot.

    Rounds before the one in which pruning began may leave both axes, see `shown_range`.
    """
    figure, axes = canvas(f"validation {worded(metric)}")
    values = [v for arm in arms(rows) for v in draw_line(axes, rows, arm, metric) if v == v]
    form = metric_of(metric).form
    if (shown := shown_range(rows, metric)) is not None:
        values = list(shown)
        margin = (shown[1] - shown[0]) / 12
        axes.set_ylim(shown[0] - margin, shown[1] + margin)
        axes.set_xlim(left=_first_pruning(rows) - 1)
    if form == "share":
        axes.yaxis.set_major_formatter(percentages())
    elif form == "level" and values and min(values) > 0 and max(values) > 4 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    return finish(figure, axes, rows)


ZOOM = 3.0
"""How many times the values since pruning began must fit into all of them to be shown alone."""


def shown_range(rows: Sequence[Row], metric: str) -> tuple[float, float] | None:
    """The values that an axis of quality shows where all of them would hide the differences.

    The lowest and the highest since the first pruning, over all arms; None where the axis shows
    every round.
    """
    first = _first_pruning(rows)
    told = [zip(*series(rows, arm, metric), strict=True) for arm in arms(rows)]
    points = [(r, v) for line in told for r, v in line if math.isfinite(v)]
    late = [v for r, v in points if r >= first]
    every = [v for _, v in points]
    if len(set(late)) < 2 or max(every) - min(every) <= ZOOM * (max(late) - min(late)):
        return None
    return min(late), max(late)


def _first_pruning(rows: Sequence[Row]) -> float:
    """The round in which the main arm was first pruned; infinity, if in none."""
    return min((r for arm in arms(rows)[:1] for r in pruning_rounds(rows, arm)), default=math.inf)


@styled
def sparsity_figure(rows: Sequence[Row]) -> Figure:
    """Removed share of the prunable weights over rounds; arms with the same curve share a line."""
    figure, axes = canvas("weights removed, of prunable")
    for arm in distinct_arms(rows, "sparsity"):
        draw_line(axes, rows, arm, "sparsity")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(percentages())
    return finish(figure, axes, rows)


@styled
def bytes_figure(rows: Sequence[Row]) -> Figure:
    """Bytes up and down so far, stacked, of the main arm, against dense averaging."""
    figure, axes = canvas("")
    arm = arms(rows)[0]
    rounds, up = series(rows, arm, "bytes_up")
    down, dense = (series(rows, arm, key)[1] for key in ("bytes_down", "bytes_dense"))
    sums = [u + d for u, d in zip(up, down, strict=True)]
    top = max((v for v in [*sums, *dense] if v == v), default=0)
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB")) if top >= s), (1e3, "kB"))
    lower, upper = [v / scale for v in up], [v / scale for v in sums]
    color = ARMS["pruned"][0]
    axes.fill_between(rounds, lower, upper, color=color, alpha=0.3, lw=0, label="down")
    axes.fill_between(rounds, 0, lower, color=color, alpha=0.75, lw=0, label="up")
    color, dashes, _ = ARMS["dense"]
    axes.plot(rounds, [v / scale for v in dense], dashes, color=color, label="dense FedAvg")
    axes.set_ylabel(f"{unit} so far, all clients")
    axes.set_ylim(bottom=0)
    return finish(figure, axes, rows)


@styled
def agreement_figure(rows: Sequence[Row]) -> Figure:
    """Overlap of the clients' own masks in the rounds that measured it, beside the chance level."""
    figure, axes = canvas("kept weights in common")
    arm = arms(rows)[0]
    rounds, values = series(rows, arm, "agreement")
    chance = chance_levels(rows, arm)
    shown = [i for i, value in enumerate(values) if value == value]
    color, dashes, marker = ARMS["pruned"]
    at = [rounds[i] for i in shown]
    axes.plot(at, [values[i] for i in shown], dashes, color=color, marker=marker, label="clients")
    axes.plot(at, [chance[i] for i in shown], ":", color=INK, label="chance")
    axes.yaxis.set_major_formatter(percentages())
    return finish(figure, axes, [])


@styled
def layers_figure(layers: Sequence[Row]) -> Figure:
    """Kept share of each prunable tensor: named bars, or a heat map when there are many."""
    return bars(layers) if len(layers) <= NAMED_BARS else heat_map(layers)


def bars(layers: Sequence[Row]) -> Figure:
    """One named bar per tensor, in model order from the top."""
    figure, axes = canvas("", height=0.7 + 0.19 * len(layers))
    shares = [density(layer) for layer in layers]
    places = range(len(layers))
    axes.barh(places, [1.0] * len(layers), height=0.62, color=FAINT, alpha=TRACK)
    axes.barh(places, shares, height=0.62, color=ARMS["pruned"][0])
    for place, share in zip(places, shares, strict=True):
        inside = share > 0.8  # no room beside the bar
        at, side, color = (-0.015, "right", PAPER) if inside else (0.015, "left", INK)
        axes.text(
            share + at, place, percent(share), va="center", ha=side, fontsize=7.5, color=color
        )
    axes.set_yticks(places, [short_name(layer["name"]) for layer in layers], fontsize=7.5)
    axes.set(ylim=(len(layers) - 0.4, -0.6), xlim=(0, 1), xlabel="weights kept")
    axes.xaxis.set_major_formatter(percentages())
    axes.grid(visible=False)
    return figure


def heat_map(layers: Sequence[Row]) -> Figure:
    """One cell per tensor: its kind by the first number in its name; darker keeps more."""
    places = grid([layer["name"] for layer in layers])
    kinds = list(dict.fromkeys(kind for kind, _ in places))
    columns = sorted({column for _, column in places})
    figure, axes = canvas("", height=1.0 + 0.19 * len(kinds))
    highest = max(map(density, layers)) or 1.0
    color = ARMS["pruned"][0]
    for layer, (kind, column) in zip(layers, places, strict=True):
        corner = (columns.index(column) - 0.46, kinds.index(kind) - 0.45)
        shade = 0.04 + 0.96 * density(layer) / highest
        axes.add_patch(Rectangle(corner, 0.92, 0.9, facecolor=color, alpha=shade, lw=0))
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(kinds) - 0.5, -0.5), xlabel="block")
    step = math.ceil(len(columns) / 14)
    ticks = range(0, len(columns), step)
    axes.set_xticks(ticks, ["\u2013" if columns[i] < 0 else str(columns[i]) for i in ticks])
    axes.set_yticks(range(len(kinds)), [short_name(kind) for kind in kinds], fontsize=7.5)
    axes.grid(visible=False)
    scale = [(part, f"{100 * part * highest:.2g}{SPACE}%") for part in (0, 1 / 3, 2 / 3, 1)]
    shades = [Patch(color=color, alpha=0.04 + 0.96 * p, lw=0, label=t) for p, t in scale]
    legend(figure, shades, [text for _, text in scale])
    return figure


PLURALS = {"head": "heads", "neuron": "neurons", "channel": "channels", "expert": "experts"}
MOST_ROWS = 64  # More groups than this are not drawn one by one; the table of layers has them


def spans(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers as (first, length)."""
    runs = itertools.groupby(enumerate(kept), lambda pair: pair[1] - pair[0])
    found = [[unit for _, unit in run] for _, run in runs]
    return [(run[0], len(run)) for run in found]


@styled
def architecture_figure(groups: Sequence[Row]) -> Figure:
    """One strip a group, from the top in model order; what is filled is left.

    `groups`: `structure` of a summary: path, kind, how many units there were, which are left.
    """
    shown = groups[:MOST_ROWS]
    figure, axes = canvas("", height=0.6 + 0.17 * len(shown))
    color = ARMS["pruned"][0]
    for place, group in enumerate(shown):
        unit = 1 / max(1, group["of"])
        axes.add_patch(Rectangle((0, place - 0.34), 1, 0.68, facecolor=FAINT, alpha=TRACK, lw=0))
        # A gap between units as long as they are wide enough to be told apart.
        gap = 0.12 * unit if group["of"] <= 32 else 0.0
        runs = [(u, 1) for u in group["kept"]] if gap else spans(group["kept"])
        for first, length in runs:
            corner, width = (first * unit + gap / 2, place - 0.34), length * unit - gap
            axes.add_patch(Rectangle(corner, width, 0.68, facecolor=color, lw=0))
        axes.text(1.015, place, f"{len(group['kept'])} of {group['of']}", va="center", fontsize=7)
    axes.set_yticks(
        range(len(shown)), [f"{short_name(g['path'])} {g['kind']}s" for g in shown], fontsize=7
    )
    axes.set(xlim=(0, 1.22), ylim=(len(shown) - 0.4, -0.6), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    return figure


def architecture_finding(run: Run) -> str:
    """How many units of each kind are left, and how many parameters, in one or two sentences."""
    groups = run.summary.get("structure") or []
    said = []
    for kind in dict.fromkeys(group["kind"] for group in groups):
        same = [g for g in groups if g["kind"] == kind]
        left, of = (sum(n) for n in ([len(g["kept"]) for g in same], [g["of"] for g in same]))
        gone = sum(not g["kept"] for g in same)
        whole_ones = f", {gone} of {counted(len(same), 'layer')} without any" if gone else ""
        said.append(f"{whole(left)} of {whole(of)} {PLURALS.get(kind, kind + 's')}{whole_ones}")
    text = f"Left in use: {'; '.join(said)}."
    left, of = run.summary.get("parameters_left"), run.summary.get("parameters")
    if left is None or of is None:
        return text
    if left == of:
        return f"{text} Nothing was taken out of the tensors (--shrink end or every does)."
    return f"{text} The model itself has {whole(left)} parameters now, of {whole(of)}."
