"""Several runs -> one page that needs nothing else, LaTeX tables and ``results.csv``."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from fedprune.options.refusal import counted
from fedprune.report.picture import svg, write_plots
from fedprune.report.reading import significant, worded
from fedprune.report.sentences import listed
from fedprune.report.tables import Table
from fedprune.report.template import framed, rendered
from fedprune.study.beside import fairness_table, gap_table, reaching_table, recovery_table
from fedprune.study.comparison import is_higher, least_p, metrics_in, paired_tests, quality_blocks
from fedprune.study.design import SEED, Factors
from fedprune.study.outcomes import lacking, write_outcomes
from fedprune.study.pictures import Collected, mask_pictures, panel_pictures, rank_pictures
from fedprune.study.tables import (
    Panel,
    panels_of,
    quality_over,
    runs_table,
    tests_table,
    write_latex,
)

STUDY_PAGE_NAME = "study.html"

STUDY_PAGE = framed(
    "<p>{{ what }}</p>\n",
    """\

<h2>Quality</h2>
{% for verdict in verdicts %}
<p class="verdict">{{ verdict }}</p>
{% endfor %}
<p>{{ how }}</p>
{% for title, cells, drawn in panels %}
{% if title %}
<h3>{{ title }}</h3>
{% endif %}
{{ table(cells, "Test quality " + title) }}
{% for picture in drawn %}
{{ figure(picture) }}
{% endfor %}
{% endfor %}

{% if tests or ranks %}
<h2>Differences</h2>
{% for title, notes, cells in tests %}
<h3>{{ title }}</h3>
<p>{{ notes }}</p>
{{ table(cells, title) }}
{% endfor %}
{% for picture in ranks %}
{{ figure(picture) }}
{% endfor %}
{% endif %}

{% if gaps.rows %}
<h2>Gap between clients alone and pooled data</h2>
<p>{{ gap_note }}</p>
{{ table(gaps, "Gap closed") }}
{% endif %}

{% if recovery.rows %}
<h2>Before and after tuning</h2>
<p>Validation loss, mean and standard deviation over seeds. A round measures after its clients have
tuned, so the middle column has the tuning of one round behind it, the last one all of it.</p>
{{ table(recovery, "Before and after tuning") }}
{% endif %}

{% if reaching.rows %}
<h2>Until all are as good</h2>
<p>The level is the best value on validation that every run gets to once all is pruned, of those
that are compared: rounds, bytes of all clients and the clock until then, mean and standard
deviation over seeds. The dense rounds before count, their quality does not.</p>
{{ table(reaching, "Until all are as good") }}
{% endif %}

{% if fairness.rows %}
<h2>Clients</h2>
<p>The {{ fairness_of }} of each client on its own test part, from histograms that clients add up:
mean and standard deviation over seeds.</p>
{{ table(fairness, "Spread over clients") }}
{% endif %}

{% if masks %}
<h2>Masks</h2>
{% for picture in masks %}
{{ figure(picture) }}
{% endfor %}
{% endif %}

<h2>Runs</h2>
<p>{{ played }}</p>
{{ table(runs, "Every run", "tall") }}

<h2>Repeat</h2>
<pre tabindex="0"><code>{{ command }}</code></pre>
""",
)

GAP_NOTE = (
    "Closed: (local - federated) / (local - centralised), of mean test losses on everyone's test "
    "parts. In brackets the standard deviation over seeds; of one run, over clients. Withheld "
    "where local and centralised differ by no more than twice the standard error. What weights "
    "compete with is the same on all sides."
)


def write_study(out: Path, collected: Collected) -> Path:
    """Write ``study.html``, ``plots/``, ``tables/`` and ``results.csv``; the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    factors, outcomes = collected.factors, collected.outcomes
    panels = panels_of(outcomes, factors)
    write_outcomes(out, outcomes)
    write_latex(out, panels, factors)
    drawn = [panel_pictures(collected, panel, i) for i, panel in enumerate(panels)]
    ranks, masks = rank_pictures(collected), mask_pictures(collected)
    pictures = [*(p for its in drawn for p in its), *ranks, *masks]
    made = {picture.name: picture for picture in pictures}
    write_plots(out, made)
    fairness_of, fairness = fairness_table(collected.measured, factors)
    text = rendered(
        STUDY_PAGE,
        # `study` or `compare`, as it was called.
        kicker=" ".join(collected.command.split()[:2]),
        title=collected.title,
        what=_what(collected),
        verdicts=[text for panel in panels if (text := _verdict(panel, factors))],
        how=_how(collected),
        panels=[
            (_place_words(panel, factors), quality_over(panel, factors), its)
            for panel, its in zip(panels, drawn, strict=True)
        ],
        tests=_tests(collected),
        ranks=ranks,
        gaps=gap_table(collected.measured, factors),
        gap_note=GAP_NOTE,
        recovery=recovery_table(collected.measured, factors),
        reaching=reaching_table(collected.measured, factors),
        fairness_of=fairness_of,
        fairness=fairness,
        masks=masks,
        # The one thing that is not escaped: elements that matplotlib wrote, its texts escaped.
        svg={name: Markup(svg(picture)) for name, picture in made.items()},
        runs=runs_table(outcomes, factors),
        played=_played(collected),
        command=collected.command,
    )
    (out / STUDY_PAGE_NAME).write_bytes(text)
    return out / STUDY_PAGE_NAME


def _what(collected: Collected) -> str:
    factors = collected.factors
    levels = {n: dict.fromkeys(o.labels[n] for o in collected.outcomes) for n in factors.names}
    compared = levels.pop(factors.compared)
    tasks = dict.fromkeys(str(t) for o in collected.measured if (t := o.said("task")))
    on = f" on the task {' and '.join(tasks)}" if tasks else ""
    each = " and ".join(f"{name} {listed(list(its), 8)}" for name, its in levels.items())
    runs = f"{counted(len(collected.outcomes), 'run')}{f': each with {each}' if each else ''}"
    return f"{factors.compared.capitalize()} compared{on}: {listed(list(compared))}. {runs}."


def _how(collected: Collected) -> str:
    metrics = " and ".join(
        f"{worded(m)} ({'higher' if is_higher(m) else 'lower'} is better)"
        for m in metrics_in(collected.outcomes)
    )
    spread = "mean and, in brackets, standard deviation over seeds"
    alone = "one run each, so no spread over seeds is known; each run's own page has intervals"
    said = spread if SEED in collected.factors.names else alone
    lacks = lacking(collected.measured)
    more = f" Not here, and wanted by ShrinkBench's rules: {', '.join(lacks)}." if lacks else ""
    return f"Test {metrics}: {said}. Nothing was chosen on the test split.{more}" if metrics else ""


def _place_words(panel: Panel, factors: Factors) -> str:
    place = [f"{n} {label}" for n, label in zip(factors.rest, panel.place, strict=True)]
    return ", ".join(place if panel.alone else [*place, worded(panel.metric)])


def _verdict(panel: Panel, factors: Factors) -> str:
    """Who is best on average in each column, and where that is not said."""
    if len(panel.rows) < 2:
        return ""
    where = f"{_place_words(panel, factors)}: " if panel.place else ""
    best = {column: name for column in panel.columns if (name := panel.best(column))}
    told = [f"{name} at {factors.over} {column}" for column, name in best.items()]
    said = f"Best on average is {'; '.join(told)}. " if told else ""
    if len(best) == len(panel.columns) and len(set(best.values())) == 1:
        wide = f", at every {factors.over}" if len(best) > 1 else ""
        said = f"Best on average is {next(iter(best.values()))}{wide}. "
    uneven = [column for column in panel.columns if panel.uneven(column)]
    if uneven:
        at = f" at {factors.over} {', '.join(uneven)}" if factors.over else ""
        said += f"Means{at} are of different seeds: none is called best."
    return where + said.strip() if said else ""


def _tests(collected: Collected) -> list[tuple[str, str, Table]]:
    """A table of paired tests for every metric in which there are pairs."""
    factors, out = collected.factors, []
    for metric in metrics_in(collected.outcomes):
        same = [o for o in collected.measured if o.metric == metric]
        labels = list(dict.fromkeys(o.labels[factors.compared] for o in same))
        found = paired_tests(quality_blocks(same, factors), labels, higher=is_higher(metric))
        pairs = max((one.count for one in found), default=0)
        if pairs > 1:  # of one pair the table of quality says it
            out.append(
                (f"Paired tests, {worded(metric)}", _tests_words(pairs), tests_table(found, metric))
            )
    return out


def _tests_words(pairs: int) -> str:
    return (
        "A pair is two runs that differ in nothing else. The difference is the first less the "
        "second, mean and standard deviation over pairs. Effect: the matched-pairs rank-biserial "
        "correlation, +1 where the first is better in every pair. p: Wilcoxon's signed-rank test, "
        "two-sided; Holm: corrected for all comparisons in the table. Of "
        f"{counted(pairs, 'pair')} p cannot be less than {significant(least_p(pairs))}. Pairs that "
        "share a seed are not independent, so p is a guide, not a proof."
    )


def _played(collected: Collected) -> str:
    missing = [o for o in collected.outcomes if o.run is None]
    undone = [o for o in collected.outcomes if o.run is not None and o.reason]
    result = len(collected.outcomes) - len(missing)
    told = f"{result} of {counted(len(collected.outcomes), 'run')} have a result."
    if missing:
        told += f" {counted(len(missing), 'has', 'have')} none and are in no figure."
    if undone:
        told += (
            f" {counted(len(undone), 'was', 'were')} not done as asked; the last column says why."
        )
    if out := result - len(collected.measured):
        told += f" {counted(out, 'was', 'were')} not pruned as asked: in no mean, figure or test."
    return told
