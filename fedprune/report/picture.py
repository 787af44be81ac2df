"""A figure of a page with the sentence that says what it shows, as PNG and as inline SVG."""

import html
import io
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from fedprune.report import drawing
from fedprune.report.values import with_told_marks

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
