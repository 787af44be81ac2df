"""A figure of a page with the sentence that says what it shows, as PNG and as inline SVG."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from fedprune.report import drawing
from fedprune.report.reading import percent, significant

CSS_VARIABLES = {
    drawing.INK: "--ink",
    drawing.FAINT: "--faint",
    drawing.PAPER: "--paper",
    drawing.ARMS["pruned"][0]: "--series-1",
    drawing.ARMS["dense"][0]: "--series-2",
    drawing.ARMS["random"][0]: "--series-3",
    drawing.ARMS["magnitude"][0]: "--series-4",
    drawing.ARMS["lottery"][0]: "--series-5",
    drawing.OTHER_ARM[0]: "--series-6",
}


@dataclass(frozen=True)
class Picture:
    """A figure (None where the run has nothing to draw) and the finding beside it."""

    name: str
    title: str
    finding: str
    figure: Figure | None

    @property
    def wide(self) -> bool:
        """Whether it takes a line of its own, and scrolls on a phone."""
        return self.figure is not None and self.figure.get_figwidth() > 1.2 * drawing.WIDTH


def write_plots(folder: Path, made: dict[str, Picture]) -> None:
    """Write plots/NAME.png for every picture with a figure, see-through; drop those without."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, picture in made.items():
        path = folder / "plots" / f"{name}.png"
        if picture.figure is None:
            path.unlink(missing_ok=True)
            continue
        with matplotlib.rc_context(drawing.STYLE):
            picture.figure.savefig(path, format="png", dpi=200, transparent=True)


def svg(picture: Picture) -> str:
    """A picture as one inline `<svg>` element that takes its colours from the page.

    The same figure gives the same bytes. Every id inside carries the picture's name, because two
    figures on one page would otherwise share ids.
    """
    if picture.figure is None:
        return ""
    buffer = io.StringIO()
    with (
        matplotlib.rc_context(drawing.STYLE),
        matplotlib.rc_context({"svg.hashsalt": picture.name}),
    ):
        picture.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", body)
    body = with_told_marks(picture.figure, body)
    for color, variable in CSS_VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    width, height = (72 * inches for inches in picture.figure.get_size_inches())
    label = html.escape(f"{picture.title}. {picture.finding}")
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{body}'


_MARK = re.compile(r'<use xlink:href="([^"]*)" x="([-\d.]+)" y="([-\d.]+)"([^>]*)/>')
_NEAR = 0.05  # Points of 1/72 inch within which a drawn mark is a value's


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
