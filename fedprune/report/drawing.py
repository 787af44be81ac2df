"""What figures are drawn on: colours, style, axes, lines and legends of matplotlib.

Each figure is drawn once. A PNG has no ground of its own: its colours stand out from white and from
a dark page alike, by at least 3 to 1 (WCAG 2.2, 1.4.11), and texts by at least 4 to 1, of the 4.3
that one colour can have on both of `GROUNDS`. The page's SVG swaps these colours for CSS variables
(see `pictures`). That is why a shade is always an alpha of a palette colour and never a colour of
its own.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedprune.report.reading import SPACE, arms, pruning_rounds, series
from fedprune.server.rows import Row

P = ParamSpec("P")

INK, FAINT, PAPER = "#777b82", "#8b9098", "#ffffff"
GROUNDS = ("#ffffff", "#0d1117")
"""What a PNG is looked at on: white, and GitHub's dark page."""
TRACK = 0.25  # Alpha of `FAINT` behind a bar: faint enough for what is written on it
# Okabe and Ito's palette, told apart by colour-blind readers; each arm has its own dashes too.
_MAIN = ("#0072b2", "-", "o")
ARMS = {
    **dict.fromkeys(("pruned", "averaged", "trained"), _MAIN),
    "dense": ("#d55e00", "--", "s"),
    "random": ("#009e73", ":", "^"),
    "magnitude": ("#cc79a7", "-.", "D"),
    "lottery": ("#a6761d", "--", "v"),
}
OTHER_ARM = ("#666a70", "-.", "P")
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#2b95d0", "#c08500", "#8a8a2a", "#7f7f7f")
"""Lines that are no arms, in their order: Okabe and Ito's, the two lightest of them darker."""
STYLE: Any = {  # matplotlib names its keys one by one, by version
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a layer's name is a dollar
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 2.8,
    "svg.fonttype": "none",
}
MOST_MARKS = 60  # More rounds than this have no mark each
WIDTH, HEIGHT = 4.2, 2.6  # inches: small, so that text stays readable when scaled to a phone
LEGEND_ROWS = 3


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function under this module's style and leave the global one as it was."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inner


def canvas(label: str, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, y labelled."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(label)
    return figure, axes


class _Shares(PercentFormatter):
    """As many digits as each tick needs, not the same for all."""

    def format_pct(self, x: float, display_range: float) -> str:
        del display_range
        return f"{self.convert_to_pct(x):.6g}{self.symbol}"


def percentages() -> PercentFormatter:
    """Tick labels for shares."""
    return _Shares(1.0, symbol=f"{SPACE}%")


def draw_line(axes: Axes, rows: Sequence[Row], arm: str, key: str) -> list[float]:
    """Draw one column of one arm and return its values; rounds without a value leave a gap."""
    rounds, values = series(rows, arm, key)
    color, dashes, marker = ARMS.get(arm, OTHER_ARM)
    axes.plot(
        *(rounds, values, dashes),
        color=color,
        marker=marker,
        markevery=max(1, -(-len(rounds) // MOST_MARKS)),
        label=arm,
    )
    return values


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Name what is drawn, above the axes and from the left, in as many columns as fit.

    Where that takes more than `LEGEND_ROWS` rows the figure grows: the axes keep their size.
    """
    for columns in (4, 3, 2, 1):
        drawn = figure.legend(
            *(handles, labels), loc="outside upper left", ncols=columns, columnspacing=1.3
        )
        if columns == 1 or drawn.get_window_extent().width <= figure.bbox.width:
            break
        drawn.remove()
    more = max(0, -(-len(labels) // columns) - LEGEND_ROWS)
    figure.set_figheight(figure.get_figheight() + 0.17 * more)


def finish(figure: Figure, axes: Axes, rows: Sequence[Row]) -> Figure:
    """Label the rounds, shade the main arm's pruning phase and put the legend above."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    pruning = pruning_rounds(rows, arms(rows)[0]) if rows else []
    if pruning:
        span = (min(pruning) - 0.5, max(pruning) + 0.5)
        axes.axvspan(*span, color=FAINT, alpha=0.28, lw=0, zorder=0, label="pruning")
    legend(figure, *axes.get_legend_handles_labels())
    return figure
