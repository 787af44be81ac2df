"""Findings of attacks -> one page that needs nothing else: no request, one script.

Every attack ends in a `Passage`; `write_findings` renders them in the look of a run's report.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from fedprune.report.drawing import STYLE
from fedprune.report.tables import Table
from fedprune.report.template import framed, rendered

__all__ = ["Passage", "Table", "png_of", "write_findings"]


@dataclass(frozen=True)
class Passage:
    """What one attack found.

    Attributes:
        title: heading.
        text: paragraphs, one a string: what was attacked, how to read the figures, what they do
            not say. Escaped.
        table: the figures, or None.
        pictures: a caption (escaped) and the bytes of a PNG each, shown below the table.
    """

    title: str
    text: tuple[str, ...]
    table: Table | None = None
    pictures: tuple[tuple[str, bytes], ...] = ()


PAGE = framed(
    "fedprune attacks",
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
{% for caption, source, width in section.pictures %}
<figure class="shown">
<div tabindex="0">
<img src="data:image/png;base64,{{ source }}" alt="{{ caption }}" style="min-width: {{ width }}px">
</div>
<figcaption>{{ caption }}</figcaption>
</figure>
{% endfor %}
{% endfor %}
{% if command %}
<h2>Repeat</h2>
<pre tabindex="0"><code>{{ command }}</code></pre>
{% endif %}
""",
    style="""\
figure.shown { display: block; margin: 2rem 0 0; }
figure.shown div { overflow-x: auto; }
figure.shown img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figure.shown figcaption { margin-top: 0.6rem; max-width: 42rem; color: var(--quiet); \
font-size: 0.9375rem; }
""",
    images=True,
)


def write_findings(
    path: Path,
    title: str,
    text: Sequence[str],
    sections: Sequence[Passage],
    command: str = "",
) -> Path:
    """Write the page and return its path; the same sections give the same bytes.

    Args:
        path: where to, ending in .html.
        title: heading of the page.
        text: paragraphs below it.
        sections: in order.
        command: what to type to have the page again; "" says nothing.
    """
    page = rendered(
        PAGE,
        title=title,
        text=text,
        sections=[_shown(section) for section in sections],
        command=command,
    )
    path.write_bytes(page)
    return path


def _shown(section: Passage) -> dict[str, object]:
    coded = [
        (caption, base64.b64encode(png).decode(), min(_NARROWEST, _width_of(png) // 2))
        for caption, png in section.pictures
    ]
    return {
        "title": section.title,
        "text": section.text,
        "table": section.table,
        "pictures": coded,
    }


_NARROWEST = 640
"""Pixels below which a picture is not made smaller on a narrow screen: it scrolls."""


def _width_of(png: bytes) -> int:
    """In pixels, from the header (PNG specification, 11.2.2)."""
    return int.from_bytes(png[16:20], "big")


def png_of(figure: Figure) -> bytes:
    """A figure as PNG, without a ground of its own; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            buffer,
            format="png",
            dpi=150,
            transparent=True,
            bbox_inches="tight",
            metadata={"Software": None},
        )
    return buffer.getvalue()
