"""The jinja2 templates of pages that stand alone: their frame, and a run's report.

In a Python file, because the bundle that Flower makes of an app carries no other kind that fits:
`flwr run` would leave a template file at home.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, StrictUndefined

from fedprune.report.script import DIGEST, SCRIPT
from fedprune.report.style import CSS

TABLE = """\
{% macro table(data, label, class="") %}
<div class="scroll {{ class }}" role="region" tabindex="0" aria-label="{{ label }}">
<table>
<thead><tr>{% for column in data.columns %}<th scope="col"{% if column in data.words %} class="words"{% endif %}>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in data.rows %}
<tr>{% for cell in row %}<td{% if data.columns[loop.index0] in data.words %} class="words {{ data.columns[loop.index0] | replace(" ", "-") }}"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
"""
"""The macro that draws a `fedprune.report.tables.Table`."""

FIGURE = """\
{% macro figure(picture) %}
{% if picture.figure %}
<figure id="{{ picture.name }}"{% if picture.wide %} class="wide"{% endif %}>
<div class="plot">{{ svg[picture.name] }}</div>
<figcaption><h3>{{ picture.title }}</h3><p>{{ picture.finding }}</p></figcaption>
</figure>
{% else %}
<section class="absent" id="{{ picture.name }}"><h3>{{ picture.title }}</h3><p>{{ picture.finding }}</p></section>
{% endif %}
{% endmacro %}
"""
"""The macro that draws a `fedprune.report.picture.Picture`, whose `svg` is not escaped."""

_CONTENTS = "<!-- contents -->"  # Where the list of sections goes


def framed(header: str, main: str, images: bool = False) -> str:
    """The template of a whole page: no request, one script; everything that is put in is escaped.

    It takes its `title` and a `kicker`, the line above: the command that it is of.

    `main`: the rest; may use the macros `table` and `figure`. `images`: its figures hold some.
    """
    allowed = "img-src data:; " if images else ""
    return f"""\
{TABLE}{FIGURE}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {allowed}script-src 'sha256-{DIGEST}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{{{{ title }}}} – fedprune</title>
<style>
{CSS}</style>
</head>
<body>
<header>
<p class="kicker">{{{{ kicker }}}}</p>
<h1>{{{{ title }}}}</h1>
{header}</header>
{_CONTENTS}
<main>
{main}</main>
<script>{{% raw %}}{SCRIPT}{{% endraw %}}</script>
</body>
</html>
"""


def rendered(template: str, **values: Any) -> bytes:
    """The page; the same values give the same bytes."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = with_contents(environment.from_string(template).render(values))
    # A client's words may hold half a surrogate pair, which has no UTF-8.
    return text.encode("utf-8", "replace")


def with_contents(text: str) -> str:
    """The page with a list of its sections, each of which has an id: its heading's words."""
    names = dict[str, str]()

    def anchored(heading: re.Match[str]) -> str:
        name = "section-" + re.sub(r"[^a-z0-9]+", "-", heading[1].lower()).strip("-")
        name += f"-{len(names)}" if name in names else ""
        names[name] = heading[1]
        return f'<h2 id="{name}">{heading[1]}</h2>'

    text = re.sub(r"<h2>(.*?)</h2>", anchored, text)
    entries = "\n".join(f'<li><a href="#{name}">{words}</a></li>' for name, words in names.items())
    contents = f'<nav aria-label="Contents"><ul>\n{entries}\n</ul></nav>' if entries else ""
    return text.replace(_CONTENTS, contents, 1)


RUN_PAGE = framed(
    "<p>{{ what }}</p>\n",
    """\

<h2>Result</h2>
<p class="verdict">{{ verdict }}</p>
{% if quality.rows %}
{{ table(quality, "Quality on the test split") }}
<p class="quiet">{{ tested_on }}</p>
{% if spread.rows %}
{{ table(spread, "Spread over clients: " ~ spread_of) }}
<p class="quiet">The {{ spread_of }} of each client on its own test part, from a histogram that clients add up, to the width of one bin.{{ rank_off }}</p>
{% endif %}
{% endif %}
{% if gap %}
<h3>Gap between clients alone and pooled data</h3>
<p>{{ gap | join(" ") }}</p>
{% endif %}
{% if alone %}
<p class="quiet">{{ alone }}</p>
{% endif %}
{% if earlier %}
<p>{{ earlier }}</p>
{% endif %}
{% if facts %}
<dl>
{% for name, value, note in facts %}
<div><dt>{{ name }}</dt><dd class="value">{{ value }}</dd><dd class="note">{{ note }}</dd></div>
{% endfor %}
</dl>
{% endif %}
{% if figures.rows %}
<h2>Size and speed</h2>
{{ table(figures, "Size and speed of the model and of the dense one") }}
{% for note in figure_notes %}
<p class="quiet">{{ note }}</p>
{% endfor %}
{% endif %}

<h2>Over the rounds</h2>
{% for name in ("quality", "sparsity", "bytes", "agreement") %}
{{ figure(pictures[name]) }}
{% endfor %}
{% if "tried" in pictures %}
{{ figure(pictures["tried"]) }}
{% endif %}

<h2>Layers</h2>
{% if "sensitivity" in pictures %}
{{ figure(pictures["sensitivity"]) }}
{% endif %}
{{ figure(pictures["architecture"]) }}
{{ figure(pictures["layers"]) }}
{% for text in warnings if text %}
<p>Warning: {{ text }}.</p>
{% endfor %}
{% if layers.rows %}
<details><summary>All {{ layers.rows | length }} prunable tensors</summary>
{{ table(layers, "Weights kept in each prunable tensor", "tall sortable") }}
</details>
{% endif %}
{% if stays.rows %}
{{ table(stays, "What is never pruned, as a share of all parameters") }}
{% endif %}
{% if not_prunable %}
<details><summary>{{ not_prunable | length }} tensors that are never pruned</summary>
<p class="quiet">{{ not_prunable | join(", ") }}</p>
</details>
{% endif %}

<h2>Privacy</h2>
{% for text in privacy %}
<p>{{ text }}</p>
{% endfor %}
{% for name in ("epsilon", "curve") if name in pictures %}
{{ figure(pictures[name]) }}
{% endfor %}
{% if releases.rows %}
<details{% if "epsilon" in pictures %} open{% endif %}><summary>All that left, {{ releases.rows | length }} kinds, as in privacy.jsonl</summary>
{{ table(releases, "What left clients and the server") }}
</details>
{% endif %}
{% if statement %}
<details{% if "epsilon" in pictures %} open{% endif %}><summary>Who may see what, and under which assumptions</summary>
{% for text in statement %}
<p>{{ text }}</p>
{% endfor %}
</details>
{% endif %}

<h2>Failures</h2>
{% if failures.rows %}
<p>{{ failure_count }} {{ "answer was" if failure_count == 1 else "answers were" }} refused or missing. Each round continued with the other clients, as if these had never been asked.{% if failure_count > failures.rows | length %} The first {{ failures.rows | length }} are shown, rounds.jsonl has all.{% endif %}</p>
{{ table(failures, "Failures", "tall") }}
{% else %}
<p>None.</p>
{% endif %}
{% for text in noticed %}
<p>{{ text }}</p>
{% endfor %}

<h2>Rounds</h2>
<p class="quiet">Loss and quality are on validation. Bytes are sums since the first round, counted as devices would send and receive them.</p>
{% for arm, data in rounds.items() %}
<details><summary>{{ arm }}, {{ data.rows | length }} {{ "round" if data.rows | length == 1 else "rounds" }}</summary>
{{ table(data, "Rounds of the arm " ~ arm, "tall") }}
</details>
{% else %}
<p>None.</p>
{% endfor %}

<h2>Configuration</h2>
<details><summary>All {{ config.rows | length }} keys, as in config.toml</summary>
{{ table(config, "Configuration") }}
</details>

<h2>Repeat and resume</h2>
{% for what, command in commands %}
<h3>{{ what }}</h3>
<pre tabindex="0"><code>{{ command }}</code></pre>
{% else %}
<p>No command was recorded.</p>
{% endfor %}
{% if digests.rows %}
{% for line in anyway %}<p>The run was continued with a change: {{ line }}.</p>{% endfor %}
<p>On a CPU with the same versions, a repeated or resumed run ends with the same bits:</p>
{{ table(digests, "Digests") }}
{% endif %}
{% if provenance.rows %}
<h2>Provenance</h2>
{{ table(provenance, "Provenance") }}
{% endif %}
""",
)
"""One run's report."""
