"""The jinja2 templates of pages that stand alone: their frame, and a run's report.

In a Python file, because the bundle that Flower makes of an app carries no other kind that fits:
`flwr run` would leave a template file at home.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, StrictUndefined

from fedprune.report.script import DIGEST, SCRIPT

TABLE = """\
{% macro table(data, label, class="") %}
<div class="scroll {{ class }}" role="region" tabindex="0" aria-label="{{ label }}">
<table>
<thead><tr>{% for column in data.columns %}<th scope="col"{% if column in data.words %} class="words"{% endif %}>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in data.rows %}
<tr>{% for cell in row %}<td{% if data.columns[loop.index0] in data.words %} class="words {{ data.columns[loop.index0] }}"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
"""
"""The macro that draws a `fedprune.report.tables.Table`."""

CSS = """\
:root {
  --ink: #1d2024; --quiet: #5b616b; --faint: #c9ccd1; --rule: #e3e5e8; --paper: #ffffff; --code: #f5f6f7;
  --series-1: #0072b2; --series-2: #d55e00; --series-3: #009e73; --series-4: #b05a8b;
  --series-5: #8a5f10; --series-6: #5d6167;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e6e9; --quiet: #9ba2ad; --faint: #4b515a; --rule: #2c3037; --paper: #15171a; --code: #1d2024;
    --series-1: #56b4e9; --series-2: #f0954a; --series-3: #35c79b; --series-4: #e0a0c6;
    --series-5: #d9b15c; --series-6: #a3a7ad;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 3.5rem 1.25rem 5rem; max-width: 66rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word;
}
h1, h2, h3 { line-height: 1.25; font-weight: 600; margin: 0; }
h1 { font-size: 1.9rem; letter-spacing: -0.015em; }
h2 { font-size: 1.25rem; margin: 4rem 0 1.25rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; }
p { margin: 0.6rem 0 0; max-width: 42rem; }
.kicker, .quiet, figcaption p, .absent p { color: var(--quiet); }
.kicker { margin: 0 0 0.4rem; font-size: 0.875rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.25rem; margin: 1.5rem 0 0; padding: 0; list-style: none; font-size: 0.875rem; }
nav a { color: var(--quiet); text-underline-offset: 0.2em; }
nav a:hover, nav a:focus-visible { color: var(--ink); }
.tip { position: absolute; z-index: 1; padding: 0.2rem 0.5rem; border-radius: 4px; background: var(--ink); color: var(--paper); font-size: 0.8125rem; pointer-events: none; white-space: nowrap; }
.sortable th button { all: unset; cursor: pointer; }
.sortable th button:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
.verdict { font-size: 1.2rem; line-height: 1.5; margin: 0 0 1.75rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1.75rem 2rem; margin: 2.25rem 0 0; }
dl div { display: flex; flex-direction: column; }
dt { font-size: 0.875rem; color: var(--quiet); }
dd { margin: 0; }
dd.value { font-size: 1.75rem; line-height: 1.3; letter-spacing: -0.01em; }
dd.note { font-size: 0.875rem; color: var(--quiet); }
figure { margin: 0 0 3rem; display: grid; gap: 1rem; }
.absent { margin: 0 0 3rem; }
@media (min-width: 54rem) {
  figure { grid-template-columns: minmax(0, 32rem) minmax(16rem, 1fr); gap: 2.75rem; align-items: center; }
}
figcaption p { font-size: 0.9375rem; }
.plot svg { display: block; width: 100%; height: auto; overflow: visible; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.plot text { font-family: inherit !important; }
p + .scroll { margin-top: 1.25rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.tall { max-height: 30rem; overflow-y: auto; }
.scroll:focus-visible, summary:focus-visible, pre:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.4; }
th, td { padding: 0.45rem 1.5rem 0.45rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0.25rem; }
th { font-weight: 500; color: var(--quiet); border-bottom: 1px solid var(--faint); }
td { border-bottom: 1px solid var(--rule); }
.tall thead th { position: sticky; top: 0; background: var(--paper); }
.words { text-align: left; }
td.reason { white-space: normal; min-width: 16rem; max-width: 34rem; overflow-wrap: anywhere; unicode-bidi: isolate; }
td.value { white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
td.SHA-256, td.tensor, td.mask, td.key { font-family: ui-monospace, "SFMono-Regular", Menlo, "Liberation Mono", monospace; font-size: 0.8125rem; }
details { margin-top: 1rem; }
summary { cursor: pointer; padding: 0.3rem 0; }
details[open] > summary { margin-bottom: 0.75rem; }
pre { margin: 0.5rem 0 1.5rem; padding: 0.8rem 1rem; overflow-x: auto; background: var(--code); border-radius: 4px; font: 0.875rem/1.5 ui-monospace, "SFMono-Regular", Menlo, "Liberation Mono", monospace; }
@media (max-width: 30rem) {
  body { padding-top: 2rem; }
  h1 { font-size: 1.55rem; }
  dl { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.5rem 1.25rem; }
  dd.value { font-size: 1.4rem; }
  th, td { padding-right: 1.1rem; }
}
@media print {
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .tip { display: none; }
  h2 { break-after: avoid; margin-top: 2rem; }
  figure, .absent, dl div, tr { break-inside: avoid; }
  .scroll, .tall { overflow: visible; max-height: none; }
  td { white-space: normal; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
"""The look of every page, light and dark."""


_CONTENTS = "<!-- contents -->"
"""Where the list of sections goes."""


def framed(kicker: str, header: str, main: str, style: str = "", images: bool = False) -> str:
    """The template of a whole page: no request, one script; everything that is put in is escaped.

    Args:
        kicker: the line above its title.
        header: what is below its `title`.
        main: the rest; may use the macro `table`.
        style: CSS beside `CSS`.
        images: it shows some that are in the page itself.
    """
    allowed = "img-src data:; " if images else ""
    return f"""\
{TABLE}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {allowed}script-src 'sha256-{DIGEST}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{{{{ title }}}} – fedprune</title>
<style>
{CSS}{style}</style>
</head>
<body>
<header>
<p class="kicker">{kicker}</p>
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
        name = "section-" + re.sub(r"[^a-z]+", "-", heading[1].lower()).strip("-")
        names[name] = heading[1]
        return f'<h2 id="{name}">{heading[1]}</h2>'

    text = re.sub(r"<h2>(.*?)</h2>", anchored, text)
    entries = "\n".join(f'<li><a href="#{name}">{words}</a></li>' for name, words in names.items())
    contents = f'<nav aria-label="Contents"><ul>\n{entries}\n</ul></nav>' if entries else ""
    return text.replace(_CONTENTS, contents, 1)


FIGURE = """\
{% macro figure(picture) %}
{% if picture.figure %}
<figure id="{{ picture.name }}">
<div class="plot">{{ svg[picture.name] }}</div>
<figcaption><h3>{{ picture.title }}</h3><p>{{ picture.finding }}</p></figcaption>
</figure>
{% else %}
<section class="absent" id="{{ picture.name }}"><h3>{{ picture.title }}</h3><p>{{ picture.finding }}</p></section>
{% endif %}
{% endmacro %}
"""
"""The macro that draws a `fedprune.report.pictures.Picture`, whose `svg` is not escaped."""

RUN_PAGE = framed(
    "fedprune run",
    "<p>{{ what }}</p>\n",
    FIGURE
    + """\

<h2>Result</h2>
<p class="verdict">{{ verdict }}</p>
{% if quality.rows %}
{{ table(quality, "Quality on the test split") }}
<p class="quiet">{{ tested_on }}</p>
{% if spread.rows %}
{{ table(spread, "Spread over clients: " ~ spread_of) }}
<p class="quiet">The {{ spread_of }} of each client on its own test part, from a histogram that clients add up: known to a bin's width.</p>
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
<p>{{ failure_count }} {{ "answer was" if failure_count == 1 else "answers were" }} refused or missing. Each round went on with the others, as if these had never been asked.{% if failure_count > failures.rows | length %} The first {{ failures.rows | length }} are shown, rounds.jsonl has all.{% endif %}</p>
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
{% for line in anyway %}<p>The run went on with something else than it began with: {{ line }}.</p>{% endfor %}
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
