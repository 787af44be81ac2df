"""Findings of attacks -> one page that needs nothing else: no request, one script.

Every attack ends in a `Passage`; `write_findings` renders them in the look of a run's report.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedprune.report.picture import Picture, svg
from fedprune.report.reading import NO_VALUE
from fedprune.report.tables import Table
from fedprune.report.template import framed, rendered

__all__ = ["Passage", "Picture", "Table", "write_findings"]


@dataclass(frozen=True)
class Passage:
    """What one attack found."""

    title: str
    # paragraphs, one a string: what was attacked, how to read the figures, what they do not say.
    # Escaped.
    text: tuple[str, ...]
    table: Table | None = None  # the figures, or None
    pictures: tuple[Picture, ...] = ()  # shown below the table; their names are unique on a page


PAGE = framed(
    """\
{% for paragraph in text %}
<p>{{ paragraph }}</p>
{% endfor %}
""",
    """\
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for paragraph in section.text %}
<p>{{ paragraph }}</p>
{% endfor %}
{% if section.table %}
{{ table(section.table, section.title) }}
{% endif %}
{% for picture in section.pictures %}
{{ figure(picture) }}
{% endfor %}
{% endfor %}
{% if command %}
<h2>Repeat</h2>
<pre tabindex="0"><code>{{ command }}</code></pre>
{% endif %}
""",
    images=True,
)


def write_findings(
    path: Path,
    title: str,
    text: Sequence[str],
    sections: Sequence[Passage],
    command: str = "",
    kicker: str = "fedprune attacks",
) -> Path:
    """Write the page and return its path; the same sections give the same bytes.

    `command`: what to type to have the page again; "" says nothing. `kicker`: the line above the
    heading: the command that it is of.
    """
    pictures = [picture for section in sections for picture in section.pictures]
    page = rendered(
        PAGE,
        title=title,
        text=text,
        kicker=kicker,
        sections=sections,
        # The one thing that is not escaped: elements that matplotlib wrote, its texts escaped.
        svg={picture.name: Markup(svg(picture)) for picture in pictures},
        command=command,
    )
    path.write_bytes(page)
    return path


Figure = dict[str, Any]  # One trial: `quantity`, `protection`, `seed`, and what was measured
_EXACT = 1e-9  # A mean squared error of pixels below which nothing is left to guess


def pivot(figures: Sequence[Figure], cell: Callable[[Sequence[Figure]], str]) -> Table:
    """A row a quantity and a column a protection, in the order in which they come."""
    rows = dict.fromkeys(f["quantity"] for f in figures)
    columns = dict.fromkeys(f["protection"] for f in figures)
    cells = [
        [
            cell([f for f in figures if f["quantity"] == row and f["protection"] == column])
            for column in columns
        ]
        for row in rows
    ]
    names = [[row, *line] for row, line in zip(rows, cells, strict=True)]
    return Table(["quantity", *columns], names, ("quantity",))


def over_seeds(figures: Sequence[Figure], name: str) -> tuple[float, float]:
    """Mean over seeds of their means, and the standard deviation of these (NaN with one seed)."""
    seeds = dict.fromkeys(f["seed"] for f in figures)
    means = [statistics.fmean(f[name] for f in figures if f["seed"] == seed) for seed in seeds]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else math.nan


def error_cell(figures: Sequence[Figure]) -> str:
    """Mean squared error with its spread over seeds, and the peak signal-to-noise ratio of it."""
    known = [f for f in figures if f.get("mse") is not None]
    if not known:
        return NO_VALUE
    mean, spread = over_seeds(known, "mse")
    if mean < _EXACT:
        return "exact"
    return f"{mean:.3f}{_more(f' ± {spread:.3f}', spread)}, {decibels(mean):.0f} dB"


def _more(text: str, spread: float) -> str:
    """What is said of a spread; nothing of one that is not known."""
    return "" if math.isnan(spread) else text


def share_cell(name: str) -> Callable[[Sequence[Figure]], str]:
    """A share in percent with its spread over seeds."""
    return _spread_cell(name, lambda m, sd: f"{100 * m:.0f}{_more(f' ± {100 * sd:.0f}', sd)} %")


def number_cell(name: str) -> Callable[[Sequence[Figure]], str]:
    """A number in two digits with its spread over seeds."""
    return _spread_cell(name, lambda m, sd: f"{m:.2f}{_more(f' ± {sd:.2f}', sd)}")


def _spread_cell(
    name: str, written: Callable[[float, float], str]
) -> Callable[[Sequence[Figure]], str]:
    def cell(figures: Sequence[Figure]) -> str:
        known = [f for f in figures if f.get(name) is not None]
        return written(*over_seeds(known, name)) if known else NO_VALUE

    return cell


def decibels(error: float) -> float:
    """Peak signal-to-noise ratio of pixels in 0..1 with this mean squared error."""
    return -10 * math.log10(max(error, 1e-30))
