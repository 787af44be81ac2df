"""What a figure's points say when somebody points at them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from fedprune.report.reading import percent, significant

_MARK = re.compile(r'<use xlink:href="([^"]*)" x="([-\d.]+)" y="([-\d.]+)"([^>]*)/>')
_NEAR = 0.05
"""Points of 1/72 inch within which a drawn mark is a value's."""


def with_told_marks(figure: Figure, body: str) -> str:
    """The inside of the figure's SVG, in which each mark of a line says what it stands for.

    A `data-value` for the page's script, and a title, which browsers show without one. Lines
    without marks say nothing. The figure must have been drawn.

    `body`: what matplotlib wrote for it, in units of 1/72 inch.
    """
    told = [point for axes in figure.axes for line in axes.lines for point in _points(axes, line)]

    def marked(found: re.Match[str]) -> str:
        mark, left, top, rest = found.groups()
        at = float(left), float(top)
        near = (t for x, y, t in told if abs(x - at[0]) < _NEAR and abs(y - at[1]) < _NEAR)
        text = html.escape("; ".join(dict.fromkeys(near)))
        drawn = f'<use xlink:href="{mark}" x="{left}" y="{top}"{rest}'
        return f'{drawn} data-value="{text}"><title>{text}</title></use>' if text else f"{drawn}/>"

    return _MARK.sub(marked, body)


def _points(axes: Axes, line: Line2D) -> Iterator[tuple[float, float, str]]:
    """Where the line's points are in the SVG, from its upper left, and what they say."""
    label = str(line.get_label())
    if line.get_marker() in ("None", "", " ", None) or label.startswith("_"):
        return
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    scale = 72 / figure.dpi
    height = 72 * figure.get_size_inches()[1]
    shares = isinstance(axes.yaxis.get_major_formatter(), PercentFormatter)
    for x, y in np.asarray(line.get_xydata(), float).tolist():
        if x == x and y == y:
            left, bottom = axes.transData.transform((x, y))
            value = percent(y) if shares else significant(y)
            where = f"{axes.get_xlabel() or 'at'} {x:g}"
            yield left * scale, height - bottom * scale, f"{label}, {where}: {value}"
