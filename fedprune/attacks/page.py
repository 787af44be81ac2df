"""Findings of attacks -> one page that needs nothing else: no request, one script.

Every attack ends in a `Passage`; `write_findings` renders them in the look of a run's report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fedprune.report.picture import Picture, svg
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
